//! Requests and replies of the verbs that move the service between sites.
//!
//! `docs/disaster-recovery.md` is the runbook; `docs/http-api.md` shows these forms.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The body of `POST /v1/dr/switchover`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SwitchoverRequest {
    /// The site whose mirrors shall become the voters.
    pub to_site: String,
    /// Who asks for it, for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why, for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Only look whether it could begin.
    #[serde(default)]
    pub dry_run: bool,
}

/// How a switchover stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SwitchoverState {
    /// There was none yet.
    None,
    /// It was only looked at: it could begin.
    Checked,
    /// The site that was asked for is the primary site already.
    NothingToDo,
    /// It is under way.
    Running,
    /// It is on its way back to where it began.
    GoingBack,
    /// The new site is the primary site.
    Done,
    /// The old site is the primary site, as before.
    WentBack,
}

/// The steps of a switchover, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SwitchoverStep {
    /// The mirrors of the new site get what they lack.
    CatchingUp,
    /// The best of them becomes a voter; the old site keeps its majority.
    AddingVoter,
    /// It takes the lead.
    HandingOver,
    /// The mirrors of the new site become the voters, and the voters of the old one mirrors. No way back from here.
    MovingVoters,
    /// The added voter becomes a mirror again.
    GoingBack,
    /// It is over: the new site is the primary site.
    Done,
    /// It is over: the old site is the primary site.
    WentBack,
}

impl SwitchoverStep {
    /// All steps.
    pub const ALL: [SwitchoverStep; 7] = [
        SwitchoverStep::CatchingUp,
        SwitchoverStep::AddingVoter,
        SwitchoverStep::HandingOver,
        SwitchoverStep::MovingVoters,
        SwitchoverStep::GoingBack,
        SwitchoverStep::Done,
        SwitchoverStep::WentBack,
    ];

    /// The word in JSON and in events.
    pub fn as_str(self) -> &'static str {
        match self {
            SwitchoverStep::CatchingUp => "catching-up",
            SwitchoverStep::AddingVoter => "adding-voter",
            SwitchoverStep::HandingOver => "handing-over",
            SwitchoverStep::MovingVoters => "moving-voters",
            SwitchoverStep::GoingBack => "going-back",
            SwitchoverStep::Done => "done",
            SwitchoverStep::WentBack => "went-back",
        }
    }

    /// Whether nothing more happens.
    pub fn is_over(self) -> bool {
        matches!(self, SwitchoverStep::Done | SwitchoverStep::WentBack)
    }
}

impl fmt::Display for SwitchoverStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The newest switchover, or the one that was just asked for: the reply to `GET`, `POST` and `DELETE /v1/dr/switchover`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SwitchoverReply {
    /// How it stands.
    pub state: SwitchoverState,
    /// Its name, the same for all who ask for it while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The site that was the primary site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_site: Option<String>,
    /// The site that becomes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_site: Option<String>,
    /// The step that it is at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<SwitchoverStep>,
    /// For how long it has been at this step, by the clock of the member that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_seconds: Option<f64>,
    /// What it waits for, as the leader knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// The member that takes the lead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The members that become voters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub voters: Vec<String>,
    /// The members that become mirrors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<String>,
    /// How long it took, or has taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// For how long no write was taken while the lead moved, in milliseconds; none before, and when the member that
    /// measured it was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<f64>,
    /// Why it goes, or went, back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<String>,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is unwise about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The command that makes sense now.
    pub next: String,
}

impl SwitchoverReply {
    /// A reply that says nothing but this.
    pub fn new(state: SwitchoverState, next: impl Into<String>) -> SwitchoverReply {
        SwitchoverReply {
            state,
            id: None,
            from_site: None,
            to_site: None,
            step: None,
            step_seconds: None,
            waits_for: None,
            target: None,
            voters: Vec::new(),
            mirrors: Vec::new(),
            began: None,
            seconds: None,
            pause_ms: None,
            back: None,
            by: None,
            reason: None,
            warnings: Vec::new(),
            next: next.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_takes_nothing_that_it_does_not_know() {
        let asked: SwitchoverRequest = serde_json::from_str(r#"{"to_site":"west"}"#).unwrap();
        assert_eq!((asked.to_site.as_str(), asked.dry_run, asked.by), ("west", false, None));
        for bad in ["{}", r#"{"to_site":7}"#, r#"{"to_site":"west","dryrun":true}"#] {
            assert!(serde_json::from_str::<SwitchoverRequest>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn steps_have_one_word_everywhere() {
        for step in SwitchoverStep::ALL {
            assert_eq!(serde_json::to_string(&step).unwrap(), format!("\"{step}\""));
        }
    }

    #[test]
    fn a_reply_leaves_out_what_there_is_not_and_comes_back() {
        let reply = SwitchoverReply::new(SwitchoverState::None, "lifeboat dr plan");
        let text = serde_json::to_string(&reply).unwrap();
        assert_eq!(text, r#"{"state":"none","next":"lifeboat dr plan"}"#);
        assert_eq!(serde_json::from_str::<SwitchoverReply>(&text).unwrap(), reply);
        let step = SwitchoverReply {
            id: Some("0a".into()),
            step: Some(SwitchoverStep::HandingOver),
            voters: vec!["n4".into()],
            ..SwitchoverReply::new(SwitchoverState::Running, "x")
        };
        let text = serde_json::to_string(&step).unwrap();
        assert_eq!(text, r#"{"state":"running","id":"0a","step":"handing-over","voters":["n4"],"next":"x"}"#);
    }
}
