//! A rehearsal of a forced failover: `POST /v1/dr/drill`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Revision, TimelineName};

/// The body of `POST /v1/dr/drill`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DrillRequest {
    /// The mirror that is meant. Another one refuses, so that nobody rehearses at the wrong member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
}

/// A line of the stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum DrillLine {
    /// How far it is.
    Progress(DrillProgress),
    /// The last line: what was found. Everything is cleaned up by then.
    Report(Box<DrillReport>),
}

/// The steps of a drill, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DrillStep {
    /// The mirror's history is linked and its log is copied.
    Forking,
    /// The throwaway member opens the fork, and builds an index.
    Opening,
    /// It is promoted, as in a forced failover.
    Promoting,
    /// It is written to, read and checked.
    Checking,
    /// The process is ended and its directory removed.
    Cleaning,
}

impl DrillStep {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            DrillStep::Forking => "forking",
            DrillStep::Opening => "opening",
            DrillStep::Promoting => "promoting",
            DrillStep::Checking => "checking",
            DrillStep::Cleaning => "cleaning",
        }
    }
}

/// How far a drill is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DrillProgress {
    /// What is being done.
    pub step: DrillStep,
    /// Since it began.
    pub elapsed_seconds: f64,
}

/// How long the failover took that was rehearsed: from the order to the first write that was accepted.
///
/// Noticing, deciding, and the survey, which waits up to a second for members that do not answer, are not in it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DrillRto {
    /// All of it.
    pub seconds: f64,
    /// Writing the order down and closing: last replies, what is in memory sealed, the index flushed.
    pub close_seconds: f64,
    /// Opening again, with the index that is there: log, history, index checked, the new timeline written.
    pub open_seconds: f64,
    /// Until it leads.
    pub lead_seconds: f64,
    /// Until the first write was accepted.
    pub first_write_seconds: f64,
    /// The objective, `rto_seconds`.
    pub objective_seconds: f64,
    /// Whether it is met.
    pub met: bool,
}

/// What the fork was made of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DrillFork {
    /// The revision that the mirror had applied then; at which contents were compared.
    pub revision: Revision,
    /// The last entry of its log.
    pub last_index: u64,
    /// Entries behind what it knew to be committed. A failover keeps them.
    pub kept_entries: u64,
    /// Segments that were linked.
    pub linked_segments: u64,
    /// Their bytes, which take no room.
    pub linked_bytes: u64,
    /// Bytes that were copied: the log behind the segments, and segments where the file system links no files.
    pub copied_bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// How long the first opening took, in which the index was built anew. A failover does not do this, and it is not in the
    /// RTO.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_seconds: Option<f64>,
}

/// How a sequence jumped at the change of the timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrillSequence {
    /// The sequence.
    pub name: String,
    /// The last number before.
    pub from: u64,
    /// The first number given out afterwards.
    pub to: u64,
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrillCheck {
    /// What.
    pub name: String,
    /// Whether it is as it should be.
    pub passed: bool,
    /// What was found.
    pub detail: String,
}

/// How the mirror went on meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DrillMirror {
    /// Its lag when the drill began; none when it was not known, as without a leader.
    pub lag_before_seconds: Option<f64>,
    /// The largest lag until its end.
    pub lag_max_seconds: Option<f64>,
}

/// What a drill found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DrillReport {
    /// The mirror.
    pub member: String,
    /// Its site.
    pub site: String,
    /// Whether the failover was done, every check passed and the objective was met.
    pub passed: bool,
    /// When it began.
    pub began: String,
    /// How long all of it took.
    pub seconds: f64,
    /// Why it did not come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// How long the failover took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto: Option<DrillRto>,
    /// What was forked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<DrillFork>,
    /// The timeline that began in the fork, and ended with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<TimelineName>,
    /// The revision of the first write on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_revision: Option<Revision>,
    /// The jump of one of the sequences; none when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<DrillSequence>,
    /// What was checked.
    pub checks: Vec<DrillCheck>,
    /// How the mirror went on meanwhile.
    pub mirror: DrillMirror,
    /// What has to be known besides.
    pub notes: Vec<String>,
    /// The next command.
    pub next: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_look_as_documented_and_come_back() {
        let progress = DrillLine::Progress(DrillProgress { step: DrillStep::Promoting, elapsed_seconds: 1.5 });
        let text = serde_json::to_string(&progress).unwrap();
        assert_eq!(text, r#"{"type":"progress","step":"promoting","elapsed_seconds":1.5}"#);
        assert_eq!(serde_json::from_str::<DrillLine>(&text).unwrap(), progress);
        let mirror = DrillMirror { lag_before_seconds: Some(0.1), lag_max_seconds: None };
        let report = DrillReport {
            member: "n4".into(),
            site: "west".into(),
            passed: false,
            began: "2026-11-24T03:00:00Z".into(),
            seconds: 2.0,
            failure: Some("x".into()),
            rto: None,
            fork: None,
            timeline: None,
            first_revision: None,
            sequence: None,
            checks: vec![DrillCheck { name: "leads".into(), passed: true, detail: "y".into() }],
            mirror,
            notes: vec![],
            next: "lifeboat dr plan".into(),
        };
        let text = serde_json::to_string(&DrillLine::Report(Box::new(report.clone()))).unwrap();
        assert!(text.starts_with(r#"{"type":"report","member":"n4","site":"west","passed":false,"#), "{text}");
        assert!(!text.contains("\"rto\""), "{text}");
        assert_eq!(serde_json::from_str::<DrillLine>(&text).unwrap(), DrillLine::Report(Box::new(report)));
    }

    #[test]
    fn a_request_takes_nothing_that_it_does_not_know() {
        assert_eq!(serde_json::from_str::<DrillRequest>("{}").unwrap(), DrillRequest::default());
        assert!(serde_json::from_str::<DrillRequest>(r#"{"site":"west"}"#).is_err());
    }
}
