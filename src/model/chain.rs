//! The chain hash: what a member has applied, as one number.

use super::hex16::hex16;

hex16!(
    /// The chain hash at a position: what was applied up to there, in 16 bytes. Two members applied the same things up to
    /// a position exactly when their chain hashes at it agree.
    ///
    /// `h(i)` is BLAKE3 over `h(i-1)` (16 bytes; zeros before position 0) followed by the frame's body as first written,
    /// without the hash itself, cut to its first 16 bytes.
    ChainHash
);
