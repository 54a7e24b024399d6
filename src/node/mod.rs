//! One running member.

mod context;
mod error;

pub use context::{Principal, RequestContext};
pub use error::NodeError;
