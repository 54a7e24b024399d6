//! Salvage files, and which requests the cluster has executed.

use bytes::Bytes;
use http::Method;

use super::Client;
use super::call::Call;
use super::cluster::json;
use super::endpoints::Prefer;
use super::error::Error;
use super::kv::Target;
use super::transport::Outgoing;
use crate::api::{KnownReply, KnownRequest, SalvageReply};

impl Client {
    /// The salvage files of the member that answers; ask one with [`Client::at`].
    pub async fn salvage_files(&self) -> Result<SalvageReply, Error> {
        let mut call = Call::read(Outgoing::new(Method::GET, "/v1/dr/salvage"));
        call.prefer = Prefer::Any;
        self.call(call).await?.json()
    }

    /// The content of a salvage file of the member that answers.
    pub async fn salvage_file(&self, name: &str) -> Result<Bytes, Error> {
        let target = Target::named("/v1/dr/salvage/", name.as_bytes());
        let mut call = Call::read(Outgoing::new(Method::GET, target.into_string()));
        call.prefer = Prefer::Any;
        // It may be long.
        call.attempt_timeout = Some(self.inner.deadline);
        Ok(self.call(call).await?.body)
    }

    /// Which of these requests, by their idempotency keys, were executed; 1,000 at most.
    pub async fn known_requests(&self, idempotency_keys: Vec<String>) -> Result<Vec<String>, Error> {
        let asked = json(Method::POST, "/v1/dr/salvage/known".to_owned(), &KnownRequest { idempotency_keys })?;
        let reply: KnownReply = self.call(Call::read(asked)).await?.json()?;
        Ok(reply.known)
    }
}
