//! In Kubernetes: a member says by a label of its own pod what it is, so that a Service can lead to the leader alone.
//!
//! Driven by what the member thinks of itself: it is `leader` only while a quorum confirms that, so a leader that is cut off
//! takes its label back, if it reaches the API server. Nothing depends on the label but that Service: with two leaders
//! labelled for a moment, or none, each member still does with a request what it always does.
//!
//! The label outlives the process, not the pod; so it is set as soon as the member is open, whatever it is then. The token of
//! the service account is replaced by Kubernetes while the member runs, so it is read for each request. The one place
//! where TLS is spoken; the only certificate that is trusted is that of the service account's files.
//!
//! Proven by the tests here against an API server of our own; the rights that it needs are in the chart, `templates/access.yaml`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Inner;
use super::health::HealthCheck;
use crate::config::Config;
use crate::model::MemberRole;

/// Where Kubernetes puts the files of the service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How often a member looks what it is.
const LOOK: Duration = Duration::from_millis(200);
/// After a failure.
const PAUSE: Duration = Duration::from_secs(2);
/// The label is set again after so long, in case somebody has changed it.
const AGAIN: Duration = Duration::from_secs(60);
/// One request.
const LIMIT: Duration = Duration::from_secs(5);

/// The label of one pod.
#[derive(Debug, Clone)]
pub struct PodLabel {
    label: String,
    pod: String,
    api: String,
    account: PathBuf,
    /// Between two looks, and after a failure.
    pauses: (Duration, Duration),
}

impl PodLabel {
    /// The label that the configuration asks for, if it does.
    pub fn new(config: &Config) -> Option<PodLabel> {
        let (label, pod) = (config.kubernetes_label.clone()?, config.kubernetes_pod.clone()?);
        Some(PodLabel {
            label,
            pod,
            api: config.kubernetes_api.clone(),
            account: ACCOUNT.into(),
            pauses: (LOOK, PAUSE),
        })
    }

    /// Sets it.
    async fn set(&self, value: &str) -> Result<(), String> {
        let read = |name: &str| {
            let path = self.account.join(name);
            std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let (token, namespace) = (read("token")?, read("namespace")?);
        let mut http = reqwest::Client::builder()
            .timeout(LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .tls_built_in_root_certs(false);
        if self.api.starts_with("https://") {
            let trusted = reqwest::Certificate::from_pem(read("ca.crt")?.as_bytes()).map_err(|e| e.to_string())?;
            http = http.add_root_certificate(trusted);
        }
        let url = format!("{}/api/v1/namespaces/{}/pods/{}", self.api, namespace.trim(), self.pod);
        let body = json!({ "metadata": { "labels": { &self.label: value } } });
        let request = http.build().map_err(|e| e.to_string())?.patch(&url).bearer_auth(token.trim());
        let request = request.header("Content-Type", "application/merge-patch+json").body(body.to_string());
        match request.send().await {
            Ok(reply) if reply.status().is_success() => Ok(()),
            Ok(reply) => Err(format!("{url} answers {}", reply.status())),
            Err(error) => Err(format!("{error:?}")),
        }
    }

    /// Keeps it at what `what` says, until that says none.
    async fn keep(&self, mut what: impl FnMut() -> Option<&'static str>) {
        let mut set: Option<(&str, Instant)> = None;
        let mut last_words = String::new();
        while let Some(value) = what() {
            let is_set = set.is_some_and(|(before, at)| before == value && at.elapsed() < AGAIN);
            let (mut pause, after_failure) = self.pauses;
            if !is_set {
                match self.set(value).await {
                    Ok(()) => {
                        if set.is_none_or(|(before, _)| before != value) {
                            tracing::info!(pod = self.pod, label = self.label, value, "the pod is labelled");
                        }
                        (set, last_words) = (Some((value, Instant::now())), String::new());
                    }
                    Err(why) => {
                        if why != last_words {
                            tracing::warn!(
                                pod = self.pod,
                                label = self.label,
                                value,
                                why,
                                "the pod cannot be labelled"
                            );
                            last_words = why;
                        }
                        pause = after_failure;
                    }
                }
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// Labels the pod for as long as the member runs. One that stops leads no more: that is said before it ends, if there is time.
pub async fn run(inner: Arc<Inner>, label: PodLabel) {
    let what = || (!inner.is_stopping()).then(|| inner.labelled_as());
    label.keep(what).await;
    if let Err(why) = label.set(not_leading(inner.view().role)).await {
        tracing::debug!(why, "the label of the pod is left as it is");
    }
}

impl Inner {
    fn labelled_as(&self) -> &'static str {
        match self.health(HealthCheck::Leader) {
            Ok(()) => "leader",
            Err(_) => not_leading(self.view().role),
        }
    }
}

fn not_leading(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Voter => "follower",
        MemberRole::Mirror => "mirror",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// An API server: what it was asked, and the statuses that it answers, the last one for ever.
    struct FakeApi {
        url: String,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl FakeApi {
        async fn start(statuses: &'static [u16]) -> FakeApi {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let asked = Arc::new(Mutex::new(Vec::new()));
            let seen = asked.clone();
            tokio::spawn(async move {
                for at in 0.. {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let (mut text, mut buffer) = (String::new(), [0; 4096]);
                    // The body is the last thing sent, and ends with the braces of three objects.
                    while !text.ends_with("}}}") {
                        let read = stream.read(&mut buffer).await.unwrap();
                        assert!(read > 0, "cut: {text}");
                        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
                    }
                    seen.lock().push(text);
                    let status = statuses.get(at).or(statuses.last()).unwrap();
                    let reply = format!("HTTP/1.1 {status} x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}");
                    stream.write_all(reply.as_bytes()).await.unwrap();
                }
            });
            FakeApi { url, asked }
        }

        fn label(&self, account: &std::path::Path) -> PodLabel {
            let (label, pod) = ("lifeboat-role".to_owned(), "lifeboat-1".to_owned());
            let pauses = (Duration::from_millis(1), Duration::from_millis(2));
            PodLabel { label, pod, api: self.url.clone(), account: account.into(), pauses }
        }
    }

    fn account() -> tempfile::TempDir {
        let account = tempfile::tempdir().unwrap();
        std::fs::write(account.path().join("token"), "secret-1\n").unwrap();
        std::fs::write(account.path().join("namespace"), "east\n").unwrap();
        account
    }

    #[tokio::test]
    async fn its_own_pod_is_patched_with_the_token_of_the_moment() {
        let (api, account) = (FakeApi::start(&[200]).await, account());
        let label = api.label(account.path());
        label.set("leader").await.unwrap();
        std::fs::write(account.path().join("token"), "secret-2").unwrap();
        label.set("follower").await.unwrap();
        let asked = api.asked.lock().clone();
        for (request, token, value) in [(&asked[0], "secret-1", "leader"), (&asked[1], "secret-2", "follower")] {
            assert!(request.starts_with("PATCH /api/v1/namespaces/east/pods/lifeboat-1 HTTP/1.1\r\n"), "{request}");
            assert!(request.contains(&format!("authorization: Bearer {token}\r\n")), "{request}");
            assert!(request.contains("content-type: application/merge-patch+json\r\n"), "{request}");
            let body = format!(r#"{{"metadata":{{"labels":{{"lifeboat-role":"{value}"}}}}}}"#);
            assert!(request.ends_with(&format!("\r\n\r\n{body}")), "{request}");
        }
    }

    #[tokio::test]
    async fn what_is_refused_is_said_and_what_is_missing_is_named() {
        let (api, account) = (FakeApi::start(&[403]).await, account());
        let why = api.label(account.path()).set("leader").await.unwrap_err();
        assert!(why.contains("answers 403"), "{why}");
        std::fs::remove_file(account.path().join("token")).unwrap();
        let why = api.label(account.path()).set("leader").await.unwrap_err();
        assert!(why.contains("token"), "{why}");
        // Over TLS the certificate of the account is needed.
        let tls = PodLabel { api: "https://127.0.0.1:1".into(), ..api.label(account.path()) };
        std::fs::write(account.path().join("token"), "x").unwrap();
        let why = tls.set("leader").await.unwrap_err();
        assert!(why.contains("ca.crt"), "{why}");
    }

    #[tokio::test]
    async fn the_label_follows_what_the_member_is_and_failures_are_tried_again() {
        let (api, account) = (FakeApi::start(&[500, 200]).await, account());
        // What the member is, as often as it looks: it leads, then no more, then it stops.
        let looks = AtomicUsize::new(0);
        let what = || match looks.fetch_add(1, Ordering::Relaxed) {
            0..10 => Some("leader"),
            10..20 => Some("follower"),
            _ => None,
        };
        api.label(account.path()).keep(what).await;
        let values: Vec<String> =
            api.asked.lock().iter().map(|asked| asked.rsplit('"').nth(1).unwrap().into()).collect();
        assert_eq!(values, ["leader", "leader", "follower"], "once for each change, and once more after the 500");
    }
}
