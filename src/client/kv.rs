//! Keys and values: read, write, delete, list, and wait for a change.
//!
//! Each call is begun by a method of [`Client`], takes its options one by one, and is sent when it is awaited.

use std::fmt::Write as _;
use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream};
use http::header::{ACCEPT, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use tokio::time::Instant;

use super::Client;
use super::call::{Call, Keyed, Reply};
use super::endpoints::Prefer;
use super::error::Error;
use super::transport::Outgoing;
use crate::api::{DeleteKeysReply, DeleteReply, KeyItem, Keys, KeysPage, Revision, WriteReply};

/// What is not encoded in paths and queries.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
/// The longest question of a long poll; waiting longer takes several.
const LONGEST_POLL: Duration = Duration::from_secs(30);
/// How much longer than its `wait` a long poll may take to be answered.
const POLL_SLACK: Duration = Duration::from_secs(5);
/// Keys of one page of a list that is read to its end.
const PAGE: u64 = 1000;

/// A path with a query that grows.
pub struct Target {
    text: String,
    has_query: bool,
}

impl Target {
    pub fn new(path: &str) -> Target {
        Target { text: path.to_owned(), has_query: false }
    }

    /// `path` and a name of any bytes behind it.
    pub fn named(path: &str, name: &[u8]) -> Target {
        Target::new(&format!("{path}{}", percent_encode(name, KEPT)))
    }

    pub fn add(&mut self, name: &str, value: impl AsRef<[u8]>) {
        let mark = if self.has_query { '&' } else { '?' };
        self.has_query = true;
        // Writing to a string cannot fail.
        let _ = write!(self.text, "{mark}{name}={}", percent_encode(value.as_ref(), KEPT));
    }

    pub fn add_keys(&mut self, keys: &Keys) {
        match keys {
            Keys::One(key) => self.add("key", key),
            Keys::Prefix(prefix) => self.add("prefix", prefix),
            Keys::Range { start, end } => {
                self.add("start", start);
                if let Some(end) = end {
                    self.add("end", end);
                }
            }
        }
    }

    pub fn into_string(self) -> String {
        self.text
    }
}

/// A span as the API reads it.
pub fn milliseconds(span: Duration) -> String {
    format!("{}ms", span.as_millis())
}

fn check_key(key: &[u8]) -> Result<(), Error> {
    if key.is_empty() { Err(Error::Usage("a key has at least one byte".to_owned())) } else { Ok(()) }
}

/// What was read, and how current it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer<T> {
    /// What was read.
    pub value: T,
    /// The newest revision of the member that answered.
    pub revision: Revision,
    /// Of a stale read: how old it may be; none when that is unknown.
    pub lag: Option<Duration>,
    /// The member that answered.
    pub endpoint: String,
}

impl<T> Answer<T> {
    fn of(reply: &Reply, value: T) -> Result<Answer<T>, Error> {
        let endpoint = reply.endpoint.url().to_owned();
        Ok(Answer { value, revision: reply.revision()?, lag: reply.lag(), endpoint })
    }
}

/// How current a read has to be.
#[derive(Debug, Clone, Copy, Default)]
struct Currency {
    stale: bool,
    max_lag: Option<Duration>,
    rev: Option<Revision>,
    deadline: Option<Duration>,
}

impl Currency {
    fn add_to(&self, target: &mut Target) {
        if self.stale {
            target.add("consistency", "stale");
        }
        if let Some(lag) = self.max_lag {
            target.add("max_lag", milliseconds(lag));
        }
        if let Some(rev) = self.rev {
            target.add("rev", rev.to_string());
        }
    }

    fn call(&self, target: Target) -> Call {
        let mut outgoing = Outgoing::new(Method::GET, target.into_string());
        outgoing.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let mut call = Call::read(outgoing).deadline(self.deadline);
        if self.stale {
            call.prefer = Prefer::Any;
        }
        call
    }
}

/// The options that reads share.
macro_rules! currency {
    () => {
        /// As it was at this revision.
        pub fn rev(mut self, revision: Revision) -> Self {
            self.currency.rev = Some(revision);
            self
        }

        /// Whatever the member that is asked has.
        pub fn stale(mut self) -> Self {
            self.currency.stale = true;
            self
        }

        /// Stale, but at most so old.
        pub fn max_lag(mut self, lag: Duration) -> Self {
            (self.currency.stale, self.currency.max_lag) = (true, Some(lag));
            self
        }

        /// By when this call is decided.
        pub fn deadline(mut self, deadline: Duration) -> Self {
            self.currency.deadline = Some(deadline);
            self
        }
    };
}

/// The options that writes share.
macro_rules! keyed {
    () => {
        /// Whether the members shall know it again when it is repeated; true unless told otherwise. Without, a write
        /// whose answer is lost is not repeated and ends as [`Error::Unknown`].
        pub fn idempotent(mut self, idempotent: bool) -> Self {
            self.keyed = if idempotent { Keyed::Drawn } else { Keyed::No };
            self
        }

        /// The key under which the members know it again, for a write that shall survive a restart of its writer.
        pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
            self.keyed = Keyed::Given(key.into());
            self
        }

        /// By when this call is decided.
        pub fn deadline(mut self, deadline: Duration) -> Self {
            self.deadline = Some(deadline);
            self
        }
    };
}
pub(super) use keyed;

/// Makes a call awaitable.
macro_rules! awaitable {
    ($name:ty, $output:ty) => {
        impl IntoFuture for $name {
            type Output = Result<$output, Error>;
            type IntoFuture = BoxFuture<'static, Self::Output>;

            fn into_future(self) -> Self::IntoFuture {
                Box::pin(self.send())
            }
        }
    };
}
pub(super) use awaitable;

impl Client {
    /// Reads a key: none when it does not exist.
    pub fn get(&self, key: impl Into<Bytes>) -> Get {
        Get { client: self.clone(), key: key.into(), currency: Currency::default() }
    }

    /// Writes a key.
    pub fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Put {
        Put {
            client: self.clone(),
            key: key.into(),
            value: value.into(),
            conditions: Conditions::default(),
            lease: None,
            ttl: None,
            keyed: self.keyed(),
            deadline: None,
        }
    }

    /// Deletes a key.
    pub fn delete(&self, key: impl Into<Bytes>) -> Delete {
        let (conditions, keyed) = (Conditions::default(), self.keyed());
        Delete { client: self.clone(), key: key.into(), conditions, keyed, deadline: None }
    }

    /// Deletes all keys that begin so, in one transaction.
    pub fn delete_prefix(&self, prefix: impl Into<Bytes>) -> DeleteMany {
        self.delete_keys(Keys::Prefix(prefix.into()))
    }

    /// Deletes a range of keys, in one transaction.
    pub fn delete_keys(&self, keys: Keys) -> DeleteMany {
        DeleteMany { client: self.clone(), keys, keyed: self.keyed(), deadline: None }
    }

    /// Lists keys that begin so, in the order of their bytes.
    pub fn list(&self, prefix: impl Into<Bytes>) -> List {
        self.list_keys(Keys::Prefix(prefix.into()))
    }

    /// Lists a range of keys.
    pub fn list_keys(&self, keys: Keys) -> List {
        let currency = Currency::default();
        List { client: self.clone(), keys, currency, limit: None, after: None, keys_only: false }
    }

    /// Waits until a key has changed (a long poll).
    pub fn wait(&self, key: impl Into<Bytes>) -> Wait {
        Wait { client: self.clone(), key: key.into(), since: None, timeout: LONGEST_POLL }
    }
}

/// A read of one key, sent when it is awaited.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before it is awaited"]
pub struct Get {
    client: Client,
    key: Bytes,
    currency: Currency,
}

impl Get {
    currency!();

    /// The key with what is known about the answer.
    pub async fn answer(self) -> Result<Answer<Option<KeyItem>>, Error> {
        check_key(&self.key)?;
        let mut target = Target::named("/v1/kv/", &self.key);
        self.currency.add_to(&mut target);
        let mut call = self.currency.call(target);
        call.missing_is_an_answer = true;
        let reply = self.client.call(call).await?;
        let item = if reply.status == StatusCode::NOT_FOUND { None } else { Some(reply.json()?) };
        Answer::of(&reply, item)
    }

    async fn send(self) -> Result<Option<KeyItem>, Error> {
        self.answer().await.map(|answer| answer.value)
    }
}

awaitable!(Get, Option<KeyItem>);

/// What must hold for a write.
#[derive(Debug, Clone, Default)]
struct Conditions {
    if_match: Option<String>,
    if_none_match: Option<String>,
}

impl Conditions {
    fn add_to(&self, outgoing: &mut Outgoing) {
        let mut set = |name: HeaderName, value: &Option<String>| {
            if let Some(value) = value {
                outgoing.headers.insert(name, HeaderValue::from_str(value).expect("a star or digits in quotes"));
            }
        };
        set(IF_MATCH, &self.if_match);
        set(IF_NONE_MATCH, &self.if_none_match);
    }
}

fn etag(revision: Revision) -> String {
    format!("\"{revision}\"")
}

/// A write of one key, sent when it is awaited.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before it is awaited"]
pub struct Put {
    client: Client,
    key: Bytes,
    value: Bytes,
    conditions: Conditions,
    lease: Option<u64>,
    ttl: Option<Duration>,
    keyed: Keyed,
    deadline: Option<Duration>,
}

impl Put {
    keyed!();

    /// Only when the key does not exist.
    pub fn if_absent(mut self) -> Put {
        self.conditions.if_none_match = Some("*".to_owned());
        self
    }

    /// Only when the key exists.
    pub fn if_present(mut self) -> Put {
        self.conditions.if_match = Some("*".to_owned());
        self
    }

    /// Only when the key was last written at this revision: compare and set.
    pub fn if_revision(mut self, revision: Revision) -> Put {
        self.conditions.if_match = Some(etag(revision));
        self
    }

    /// Only when the key was not last written at this revision.
    pub fn if_not_revision(mut self, revision: Revision) -> Put {
        self.conditions.if_none_match = Some(etag(revision));
        self
    }

    /// The key hangs on this lease and goes with it.
    pub fn lease(mut self, lease: u64) -> Put {
        self.lease = Some(lease);
        self
    }

    /// With a lease of its own: the key goes after so long.
    pub fn ttl(mut self, ttl: Duration) -> Put {
        self.ttl = Some(ttl);
        self
    }

    async fn send(self) -> Result<WriteReply, Error> {
        check_key(&self.key)?;
        let mut target = Target::named("/v1/kv/", &self.key);
        if let Some(lease) = self.lease {
            target.add("lease", lease.to_string());
        }
        if let Some(ttl) = self.ttl {
            target.add("ttl", milliseconds(ttl));
        }
        let mut outgoing = Outgoing::new(Method::PUT, target.into_string());
        outgoing.body = self.value;
        self.conditions.add_to(&mut outgoing);
        self.client.write(outgoing, &self.keyed, self.deadline).await
    }
}

awaitable!(Put, WriteReply);

/// A deletion of one key, sent when it is awaited.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before it is awaited"]
pub struct Delete {
    client: Client,
    key: Bytes,
    conditions: Conditions,
    keyed: Keyed,
    deadline: Option<Duration>,
}

impl Delete {
    keyed!();

    /// Only when the key exists.
    pub fn if_present(mut self) -> Delete {
        self.conditions.if_match = Some("*".to_owned());
        self
    }

    /// Only when the key was last written at this revision.
    pub fn if_revision(mut self, revision: Revision) -> Delete {
        self.conditions.if_match = Some(etag(revision));
        self
    }

    async fn send(self) -> Result<DeleteReply, Error> {
        check_key(&self.key)?;
        let target = Target::named("/v1/kv/", &self.key);
        let mut outgoing = Outgoing::new(Method::DELETE, target.into_string());
        self.conditions.add_to(&mut outgoing);
        self.client.write(outgoing, &self.keyed, self.deadline).await
    }
}

awaitable!(Delete, DeleteReply);

/// A deletion of many keys, sent when it is awaited.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before it is awaited"]
pub struct DeleteMany {
    client: Client,
    keys: Keys,
    keyed: Keyed,
    deadline: Option<Duration>,
}

impl DeleteMany {
    keyed!();

    async fn send(self) -> Result<DeleteKeysReply, Error> {
        let mut target = Target::new("/v1/keys");
        target.add_keys(&self.keys);
        let outgoing = Outgoing::new(Method::DELETE, target.into_string());
        self.client.write(outgoing, &self.keyed, self.deadline).await
    }
}

awaitable!(DeleteMany, DeleteKeysReply);

impl Client {
    /// Sends a write and reads its reply.
    pub(super) async fn write<T: serde::de::DeserializeOwned>(
        &self,
        outgoing: Outgoing,
        keyed: &Keyed,
        deadline: Option<Duration>,
    ) -> Result<T, Error> {
        self.call(Call::write(outgoing, keyed)?.deadline(deadline)).await?.json()
    }
}

/// A list of keys: one page when it is awaited, or all of them as a stream.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before it is awaited"]
pub struct List {
    client: Client,
    keys: Keys,
    currency: Currency,
    limit: Option<u64>,
    after: Option<Bytes>,
    keys_only: bool,
}

impl List {
    currency!();

    /// At most so many keys: of a page, or of the whole stream.
    pub fn limit(mut self, limit: u64) -> List {
        self.limit = Some(limit);
        self
    }

    /// Behind this key.
    pub fn after(mut self, key: impl Into<Bytes>) -> List {
        self.after = Some(key.into());
        self
    }

    /// Without values.
    pub fn keys_only(mut self) -> List {
        self.keys_only = true;
        self
    }

    /// One page with what is known about the answer.
    pub async fn answer(self) -> Result<Answer<KeysPage>, Error> {
        let mut target = Target::new("/v1/keys");
        match &self.keys {
            // The list has no parameter for a single key; this range holds nothing else.
            Keys::One(key) => {
                let end = [key, &b"\0"[..]].concat();
                target.add_keys(&Keys::Range { start: key.clone(), end: Some(end.into()) });
            }
            keys => target.add_keys(keys),
        }
        if let Some(limit) = self.limit {
            target.add("limit", limit.to_string());
        }
        if let Some(after) = &self.after {
            target.add("after", after);
        }
        if self.keys_only {
            target.add("keys_only", "true");
        }
        self.currency.add_to(&mut target);
        let reply = self.client.call(self.currency.call(target)).await?;
        let page = reply.json()?;
        Answer::of(&reply, page)
    }

    async fn send(self) -> Result<KeysPage, Error> {
        self.answer().await.map(|answer| answer.value)
    }

    /// All keys, page by page, all at the revision of the first page. When that revision is no longer kept the stream
    /// ends with an error: it never goes on at another one.
    pub fn stream(self) -> impl Stream<Item = Result<KeyItem, Error>> + Send + 'static {
        let rest = self.limit.unwrap_or(u64::MAX);
        stream::try_unfold(Pages { next: Some(self), rest, items: Vec::new().into_iter() }, |mut pages| async move {
            loop {
                if pages.rest == 0 {
                    return Ok(None);
                }
                if let Some(item) = pages.items.next() {
                    pages.rest -= 1;
                    return Ok(Some((item, pages)));
                }
                let Some(list) = pages.next.take() else { return Ok(None) };
                let mut following = list.clone();
                let page = list.limit(pages.rest.min(PAGE)).send().await?;
                if page.more
                    && let Some(last) = page.items.last()
                {
                    following.after = Some(last.key.clone());
                    following.currency.rev = Some(page.revision);
                    pages.next = Some(following);
                }
                pages.items = page.items.into_iter();
            }
        })
    }
}

awaitable!(List, KeysPage);

struct Pages {
    next: Option<List>,
    rest: u64,
    items: std::vec::IntoIter<KeyItem>,
}

/// A wait for a change of one key, begun when it is awaited.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before it is awaited"]
pub struct Wait {
    client: Client,
    key: Bytes,
    since: Option<Revision>,
    timeout: Duration,
}

/// What a wait ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// The key has changed.
    Changed {
        /// What it is now; none when it was deleted.
        item: Option<KeyItem>,
        /// From where to wait on.
        revision: Revision,
    },
    /// It has not changed in time.
    Unchanged {
        /// From where to wait on.
        revision: Revision,
    },
}

impl Wait {
    /// For a change after this revision; else for one after now.
    pub fn since(mut self, revision: Revision) -> Wait {
        self.since = Some(revision);
        self
    }

    /// For so long; 30 s unless told otherwise.
    pub fn timeout(mut self, timeout: Duration) -> Wait {
        self.timeout = timeout;
        self
    }

    async fn send(self) -> Result<Waited, Error> {
        let end = Instant::now() + self.timeout;
        let mut since = match self.since {
            Some(since) => since,
            None => self.client.get(self.key.clone()).answer().await?.revision,
        };
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.poll(since, left.min(LONGEST_POLL)).await? {
                Waited::Unchanged { revision } if Instant::now() < end => since = revision,
                waited => return Ok(waited),
            }
        }
    }

    /// One question.
    async fn poll(&self, since: Revision, wait: Duration) -> Result<Waited, Error> {
        check_key(&self.key)?;
        let mut target = Target::named("/v1/kv/", &self.key);
        target.add("since", since.to_string());
        // A member takes no wait of nothing.
        target.add("wait", milliseconds(wait.max(Duration::from_millis(1))));
        let mut call = Currency::default().call(target);
        call.missing_is_an_answer = true;
        call.attempt_timeout = Some(wait + POLL_SLACK);
        call.deadline = Some(wait + POLL_SLACK.max(self.client.inner.deadline));
        let reply = self.client.call(call).await?;
        let revision = reply.revision()?;
        Ok(match reply.status {
            StatusCode::NO_CONTENT => Waited::Unchanged { revision },
            StatusCode::NOT_FOUND => Waited::Changed { item: None, revision },
            _ => {
                let item: KeyItem = reply.json()?;
                // What this member has seen beyond this change may hold the next one.
                let revision = item.meta.mod_revision;
                Waited::Changed { item: Some(item), revision }
            }
        })
    }
}

awaitable!(Wait, Waited);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_any_bytes_stand_in_paths_and_queries() {
        for (key, path) in [
            (&b"a/b"[..], "/v1/kv/a/b"),
            (b"..", "/v1/kv/.."),
            (b"a//../%", "/v1/kv/a//../%25"),
            (b"a b?#&+\0\xff", "/v1/kv/a%20b%3F%23%26%2B%00%FF"),
        ] {
            assert_eq!(Target::named("/v1/kv/", key).into_string(), path);
        }
        let mut target = Target::new("/v1/keys");
        target.add_keys(&Keys::Range { start: Bytes::from_static(b"a&"), end: Some(Bytes::from_static(b"\xff")) });
        target.add("limit", "3");
        assert_eq!(target.into_string(), "/v1/keys?start=a%26&end=%FF&limit=3");
    }
}
