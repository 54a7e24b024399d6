//! `/v1/openapi.json`: what this API is, for programs that make clients, forms and pages of it.
//!
//! Place in the path: [`operations`] declares the operations, `api` the schemas of what travels, [`document`] puts both
//! together, once, when it is asked for first. Serving it is handing out the same bytes.
//!
//! Invariants: an operation, a parameter or a form that a member takes is in the document, and nothing else is. The
//! table is a declaration beside the code and not the code itself, so this is held from both sides: the tests here
//! compare it with the routes, and `tests/openapi` walks it over a running member, whose replies it validates.

mod document;
mod dr_operations;
mod operations;
mod table;
mod words;

use std::sync::{Arc, LazyLock};

use axum::extract::State;
use axum::response::{IntoResponse, Response as AxumResponse};
use axum::routing::get;
use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};

use super::body::EdgeBody;
use super::extract::{Parameters, RequestHeaders};
use super::problem::Failure;
use super::{Reply, Routes, Shared, headers, resource};

const ALLOW: &str = "GET, HEAD, OPTIONS";

/// Every operation.
fn all_operations() -> impl Iterator<Item = &'static table::Operation> {
    operations::OPERATIONS.iter().chain(dr_operations::DR_OPERATIONS)
}

/// The document and its ETag, which is made of its content: members of one version give the same.
static DOCUMENT: LazyLock<(Bytes, HeaderValue)> = LazyLock::new(|| {
    let text = document::text();
    let etag = format!("\"{}\"", &blake3::hash(text.as_bytes()).to_hex()[..32]);
    (text.into(), HeaderValue::try_from(etag).expect("hexadecimal digits in quotes are a header value"))
});

/// The route of this file.
pub fn routes() -> Routes {
    Routes::new().route("/v1/openapi.json", resource(ALLOW, get(openapi)))
}

async fn openapi(State(_): State<Arc<Shared>>, head: Parts) -> AxumResponse {
    match reply(&head) {
        Ok(reply) => reply.map(EdgeBody::into_axum),
        Err(failure) => failure.into_response(),
    }
}

fn reply(head: &Parts) -> Result<Reply, Failure> {
    Parameters::none(head.uri.query())?;
    let read = RequestHeaders::parse(&head.headers)?;
    let (text, etag) = &*DOCUMENT;
    let mut reply = if read.knows_document(etag)? {
        let mut reply = Response::new(EdgeBody::empty());
        *reply.status_mut() = StatusCode::NOT_MODIFIED;
        reply
    } else {
        let mut reply = Response::new(EdgeBody::full(text.clone()));
        reply.headers_mut().insert(CONTENT_TYPE, headers::JSON);
        reply
    };
    reply.headers_mut().insert(ETAG, etag.clone());
    reply.headers_mut().insert(CACHE_CONTROL, headers::NO_CACHE);
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::http::{kv, route_of, routes};
    use crate::metrics::Route;

    /// Whether a documented path is one that this route serves.
    fn serves(route: &str, path: &str) -> bool {
        let (route, path): (Vec<&str>, Vec<&str>) = (route.split('/').collect(), path.split('/').collect());
        route.len() == path.len() && route.iter().zip(&path).all(|(r, p)| r == p || r.starts_with('{'))
    }

    #[test]
    fn every_route_is_documented_and_everything_documented_has_a_route() {
        let documented: BTreeSet<&str> = super::all_operations().map(|operation| operation.path).collect();
        let key = format!("{}{{key}}", kv::PREFIX);
        let mut served = routes().paths;
        served.push(&key);
        for route in &served {
            assert!(documented.iter().any(|path| serves(route, path)), "{route} is not in the table of operations");
        }
        for path in documented {
            assert!(served.iter().any(|route| serves(route, path)), "there is no route for {path}");
            let counted = path == key || route_of(path) != Route::Unknown;
            assert!(counted, "the metrics count requests for {path} as unknown");
        }
    }

    #[test]
    fn no_operation_stands_twice() {
        let mut ids = BTreeSet::new();
        let mut places = BTreeSet::new();
        for operation in super::all_operations() {
            assert!(ids.insert(operation.id), "{} stands twice", operation.id);
            assert!(places.insert((operation.path, operation.method)), "{} repeats another", operation.id);
        }
    }
}
