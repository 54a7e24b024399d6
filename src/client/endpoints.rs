//! Which member is asked: the addresses that were given, the leader that members named, and who failed lately.
//!
//! Invariants: nobody but the given addresses and the leader that a member named is ever asked; a member that failed is
//! asked again only when its pause is over; the tables are bounded by [`MAX_DOUBTED`] and the given addresses.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::error::Error;

/// How long a member that failed is not believed to lead, whoever says so: the others notice later than we. Calls that
/// begin meanwhile rather ask another one.
const DOUBT: Duration = Duration::from_secs(2);
/// The same for an address that was never given: it may be one that only the members can reach.
const DOUBT_UNKNOWN: Duration = Duration::from_secs(60);
/// So many addresses may be in doubt at once.
const MAX_DOUBTED: usize = 16;

/// The client address of a member: `http://host:port`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint(Arc<str>);

impl Endpoint {
    /// Reads an address; `http://` may be left out.
    pub fn parse(text: &str) -> Result<Endpoint, Error> {
        let trimmed = text.trim();
        let bad = |why: &str| Error::Usage(format!("{trimmed:?} is not an endpoint: {why}"));
        let with_scheme = if trimmed.contains("://") { trimmed.to_owned() } else { format!("http://{trimmed}") };
        let uri: Uri = with_scheme.parse().map_err(|error| bad(&format!("{error}")))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(bad("members do not speak TLS yet; use http://")),
            _ => return Err(bad("it begins with http:// or with the host")),
        }
        if uri.query().is_some() || !matches!(uri.path(), "" | "/") {
            return Err(bad("it ends with the port; there is no path"));
        }
        let authority = uri.authority().ok_or_else(|| bad("the host is missing"))?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(bad("it is http://host:port"));
        }
        if authority.port_u16().is_none() {
            return Err(bad("the port is missing (members listen for clients at 7400 unless told otherwise)"));
        }
        Ok(Endpoint(format!("http://{authority}").into()))
    }

    /// `http://host:port`.
    pub fn url(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whom a request would rather meet. Any member takes any request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefer {
    /// The leader, which saves a hop.
    Leader,
    /// Any: the one that answered last.
    Any,
}

/// All members that this client knows.
#[derive(Debug)]
pub struct Endpoints {
    given: Vec<Endpoint>,
    follow_leader: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The given one that is asked now.
    current: usize,
    leader: Option<Endpoint>,
    /// Who failed lately, and until when to keep that in mind.
    doubted: Vec<(Endpoint, Instant)>,
}

/// Whom one call has asked in vain.
#[derive(Debug, Default)]
pub struct Tour {
    /// Before which times not to ask whom again.
    paused: Vec<(Endpoint, Instant)>,
    /// Who failed since the last time that all given ones had failed.
    failed: Vec<Endpoint>,
}

impl Tour {
    /// From when on it may be asked.
    fn free_from(&self, endpoint: &Endpoint, now: Instant) -> Instant {
        self.paused.iter().find(|(paused, _)| paused == endpoint).map_or(now, |(_, until)| (*until).max(now))
    }

    fn pause(&mut self, endpoint: &Endpoint, until: Instant) {
        self.paused.retain(|(paused, _)| paused != endpoint);
        self.paused.push((endpoint.clone(), until));
    }
}

impl Endpoints {
    /// `first` is the place of the one that is asked first; larger numbers wrap around.
    pub fn new(given: Vec<Endpoint>, first: usize, follow_leader: bool) -> Endpoints {
        let current = first % given.len().max(1);
        let state = State { current, leader: None, doubted: Vec::new() };
        Endpoints { given, follow_leader, state: Mutex::new(state) }
    }

    pub fn given(&self) -> &[Endpoint] {
        &self.given
    }

    /// Whom to ask next, and from when on.
    pub fn choose(&self, prefer: Prefer, tour: &Tour, now: Instant) -> (Endpoint, Instant) {
        let state = self.state.lock();
        if prefer == Prefer::Leader
            && let Some(leader) = state.leader.as_ref().filter(|leader| !tour.failed.contains(leader))
        {
            return (leader.clone(), tour.free_from(leader, now));
        }
        let count = self.given.len();
        // In their order behind the current one: those that are free soonest, and of them those that did not fail.
        let rank = |at: &usize| (tour.free_from(&self.given[*at], now), tour.failed.contains(&self.given[*at]));
        let best = (0..count).map(|step| (state.current + step) % count).min_by_key(rank).unwrap_or(0);
        (self.given[best].clone(), tour.free_from(&self.given[best], now))
    }

    /// A member answered as it should, and named the leader.
    pub fn answered(&self, leader: Option<&str>, now: Instant) {
        let Some(leader) = leader.filter(|_| self.follow_leader) else { return };
        let mut state = self.state.lock();
        if state.leader.as_ref().is_some_and(|known| known.url() == leader) {
            return;
        }
        state.doubted.retain(|(_, until)| *until > now);
        if let Ok(named) = Endpoint::parse(leader)
            && !state.doubted.iter().any(|(doubted, _)| *doubted == named)
        {
            state.leader = Some(named);
        }
    }

    /// A member could not do it and is left alone until then by this call. When it is gone, the calls that begin later
    /// go elsewhere too.
    pub fn failed(&self, tour: &mut Tour, endpoint: &Endpoint, until: Instant, gone: bool, now: Instant) {
        tour.pause(endpoint, until);
        tour.failed.push(endpoint.clone());
        if self.given.iter().all(|given| tour.failed.contains(given)) {
            tour.failed.clear();
        }
        if gone {
            self.gone(endpoint, now);
        }
    }

    /// The whole cluster cannot do it for now.
    pub fn all_failed(&self, tour: &mut Tour, until: Instant) {
        let leader = self.leader();
        self.given.iter().chain(&leader).for_each(|known| tour.pause(known, until));
        tour.failed.clear();
    }

    fn gone(&self, endpoint: &Endpoint, now: Instant) {
        let mut state = self.state.lock();
        if state.leader.as_ref() == Some(endpoint) {
            state.leader = None;
        }
        let place = self.given.iter().position(|given| given == endpoint);
        let doubt = if place.is_some() { DOUBT } else { DOUBT_UNKNOWN };
        state.doubted.retain(|(doubted, until)| *until > now && doubted != endpoint);
        state.doubted.truncate(MAX_DOUBTED - 1);
        state.doubted.push((endpoint.clone(), now + doubt));
        if place == Some(state.current) {
            let count = self.given.len();
            let is_doubted = |at: &usize| state.doubted.iter().any(|(doubted, _)| *doubted == self.given[*at]);
            let mut others = (1..=count).map(|step| (state.current + step) % count);
            state.current = others.find(|at| !is_doubted(at)).unwrap_or((state.current + 1) % count);
        }
    }

    /// The one that leads, as far as this client knows.
    pub fn leader(&self) -> Option<Endpoint> {
        self.state.lock().leader.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::parse(text).unwrap()
    }

    fn three() -> Vec<Endpoint> {
        ["a:1", "b:2", "c:3"].map(endpoint).to_vec()
    }

    #[test]
    fn an_endpoint_is_a_host_with_a_port() {
        for (text, url) in [
            ("127.0.0.1:7400", "http://127.0.0.1:7400"),
            (" http://n1.example:7400/ ", "http://n1.example:7400"),
            ("[::1]:7400", "http://[::1]:7400"),
        ] {
            assert_eq!(endpoint(text).url(), url);
        }
        for (bad, why) in [
            ("", "endpoint"),
            ("host", "port is missing"),
            ("https://a:1", "TLS"),
            ("ftp://a:1", "http://"),
            ("http://a:1/v1", "no path"),
            ("a:1?x=1", "no path"),
            ("user@a:1", "http://host:port"),
            ("a:99999", "endpoint"),
        ] {
            let error = Endpoint::parse(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn the_leader_is_asked_first_until_it_fails_and_then_the_others_in_turn() {
        let (endpoints, mut tour, now) = (Endpoints::new(three(), 0, true), Tour::default(), Instant::now());
        assert_eq!(endpoints.choose(Prefer::Leader, &tour, now).0, endpoint("a:1"));
        endpoints.answered(Some("http://b:2"), now);
        assert_eq!(endpoints.choose(Prefer::Leader, &tour, now).0, endpoint("b:2"));
        assert_eq!(endpoints.choose(Prefer::Any, &tour, now).0, endpoint("a:1"));
        endpoints.failed(&mut tour, &endpoint("b:2"), now + SECOND, true, now);
        assert_eq!(endpoints.leader(), None);
        assert_eq!(endpoints.choose(Prefer::Leader, &tour, now).0, endpoint("a:1"));
        endpoints.failed(&mut tour, &endpoint("a:1"), now + SECOND, true, now);
        assert_eq!(endpoints.choose(Prefer::Leader, &tour, now), (endpoint("c:3"), now));
        // What one call met does not keep another from asking; but it begins with one that is not known to be gone.
        assert_eq!(endpoints.choose(Prefer::Any, &Tour::default(), now).0, endpoint("c:3"));
    }

    #[test]
    fn a_member_that_is_only_busy_keeps_its_place() {
        let (endpoints, mut tour, now) = (Endpoints::new(three(), 0, true), Tour::default(), Instant::now());
        endpoints.answered(Some("http://b:2"), now);
        endpoints.failed(&mut tour, &endpoint("b:2"), now + SECOND, false, now);
        assert_eq!(endpoints.leader(), Some(endpoint("b:2")));
        assert_eq!(endpoints.choose(Prefer::Leader, &tour, now).0, endpoint("a:1"));
    }

    #[test]
    fn when_all_are_paused_the_one_that_is_free_soonest_is_next() {
        let (endpoints, mut tour, now) = (Endpoints::new(three(), 1, true), Tour::default(), Instant::now());
        for (name, seconds) in [("b:2", 3), ("c:3", 1), ("a:1", 2)] {
            endpoints.failed(&mut tour, &endpoint(name), now + SECOND * seconds, true, now);
        }
        assert_eq!(endpoints.choose(Prefer::Any, &tour, now), (endpoint("c:3"), now + SECOND));
        endpoints.all_failed(&mut tour, now + SECOND * 9);
        assert_eq!(endpoints.choose(Prefer::Any, &tour, now).1, now + SECOND * 9);
    }

    #[test]
    fn a_named_leader_that_cannot_be_reached_is_not_believed_again_soon() {
        let (endpoints, now) = (Endpoints::new(three(), 0, true), Instant::now());
        let choose = || endpoints.choose(Prefer::Leader, &Tour::default(), now).0;
        endpoints.answered(Some("http://hidden:7400"), now);
        assert_eq!(choose(), endpoint("hidden:7400"));
        endpoints.failed(&mut Tour::default(), &endpoint("hidden:7400"), now, true, now);
        endpoints.answered(Some("http://hidden:7400"), now);
        assert_eq!(choose(), endpoint("a:1"));
        endpoints.answered(Some("http://hidden:7400"), now + DOUBT_UNKNOWN + SECOND);
        assert_eq!(choose(), endpoint("hidden:7400"));
    }

    #[test]
    fn a_client_may_keep_to_what_it_was_given() {
        let (endpoints, now) = (Endpoints::new(three(), 2, false), Instant::now());
        endpoints.answered(Some("http://b:2"), now);
        assert_eq!(endpoints.choose(Prefer::Leader, &Tour::default(), now).0, endpoint("c:3"));
    }
}
