//! From places to addresses: what `--discover` means at this moment.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::config::Discovery;

/// More addresses than this are not asked; a name with so many is no name of a cluster's members.
const MAX_ADDRESSES: usize = 64;

/// The places of this moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The peer URLs to ask.
    pub urls: BTreeSet<String>,
    /// What cannot be asked: names that have no address now, and addresses beyond the bound.
    pub unknown: Vec<String>,
}

/// The peer URLs of all places. A name that has no address now has none; that is said once.
pub async fn resolve(places: &[Discovery], last_words: &mut String) -> Resolved {
    let mut resolved = Resolved::default();
    let Resolved { urls, unknown } = &mut resolved;
    for place in places {
        match place {
            Discovery::Address { host, port } => drop(urls.insert(format!("http://{host}:{port}"))),
            Discovery::Dns { name, port } => match tokio::net::lookup_host((name.as_str(), *port)).await {
                Ok(addresses) => urls.extend(addresses.map(url_of)),
                Err(error) => {
                    super::say(last_words, &format!("the name {name} has no address now: {error}"));
                    unknown.push(name.clone());
                }
            },
        }
    }
    if urls.len() > MAX_ADDRESSES {
        super::say(last_words, &format!("{} addresses are found; {MAX_ADDRESSES} of them are asked", urls.len()));
        while urls.len() > MAX_ADDRESSES {
            unknown.extend(urls.pop_last());
        }
    }
    resolved
}

fn url_of(address: SocketAddr) -> String {
    format!("http://{address}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_become_all_their_addresses_and_unknown_ones_none() {
        let name = |name: &str| Discovery::Dns { name: name.into(), port: 7401 };
        let address = Discovery::Address { host: "a.example".into(), port: 9 };
        let mut words = String::new();
        let found = resolve(&[address, name("127.0.0.1"), name("::1")], &mut words).await;
        let expected = ["http://127.0.0.1:7401", "http://[::1]:7401", "http://a.example:9"];
        let expected = Resolved { urls: expected.iter().map(|url| url.to_string()).collect(), unknown: vec![] };
        assert_eq!(found, expected);
        assert_eq!(words, "");
        let found = resolve(&[name("no-such-name.invalid")], &mut words).await;
        assert_eq!(found, Resolved { unknown: vec!["no-such-name.invalid".into()], ..Resolved::default() });
        assert!(words.contains("no-such-name.invalid"), "{words}");
    }

    #[tokio::test]
    async fn what_is_not_asked_is_counted() {
        let place = |number: usize| Discovery::Address { host: format!("h{number:03}"), port: 1 };
        let places: Vec<Discovery> = (0..MAX_ADDRESSES + 3).map(place).collect();
        let found = resolve(&places, &mut String::new()).await;
        assert_eq!((found.urls.len(), found.unknown.len()), (MAX_ADDRESSES, 3));
    }
}
