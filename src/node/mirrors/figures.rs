//! The figures of `/v1/replication`: what the leader knows of each member, put together at the moment when somebody asks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver;

use super::state::{self, Seen};
use super::{BEHIND_LIMIT, Followed, Look, SILENCE_LIMIT, Tracked};
use crate::api::{CatchUp, MemberReplication, MirrorState, Queue, ReplicationReply, StandbySite};
use crate::metrics::{Sampler, catalogue};
use crate::model::{MemberId, MemberRole};
use crate::node::Inner;
use crate::raft::types::MemberInfo;

/// A failover takes so long besides what the mirror still has to apply: measured with a million keys on a busy machine, see
/// docs/performance.md.
const FAILOVER_BASE: Duration = Duration::from_millis(1500);
/// A mirror applies about so many entries a second: less than the 29,400 puts a second that it followed on two cores shared
/// with three voters and their clients.
const APPLIES_PER_SECOND: f64 = 20_000.0;

/// So many entries at the beginning of a cluster may have no time.
const UNTIMED_MAX: u64 = 8;

/// A member as it was found.
pub(super) struct Figure {
    pub id: MemberId,
    /// What its state follows from; none while that is not known.
    pub seen: Option<Seen>,
    /// What is told of it.
    pub reply: MemberReplication,
}

/// What is the same for all members at one moment.
struct Moment {
    now: Instant,
    committed: Option<u64>,
    /// For how long no quorum has confirmed this leader; none when none has yet.
    unconfirmed: Option<Duration>,
    first_in_log: u64,
}

fn seconds(span: Duration) -> f64 {
    // Microseconds are more than what is measured.
    (span.as_secs_f64() * 1e6).round() / 1e6
}

/// The index behind one, or the first.
fn next(index: Option<u64>) -> u64 {
    index.map_or(0, |index| index + 1)
}

impl Inner {
    /// Every member, as this leader knows it.
    pub(super) fn member_figures(&self) -> Vec<Figure> {
        let replication = self.raft.metrics().borrow_watched().replication.clone().unwrap_or_default();
        let moment = Moment {
            now: Instant::now(),
            committed: self.committed_index(),
            unconfirmed: self.unconfirmed_for(),
            first_in_log: self.wal.first_index(),
        };
        let mut tracked = self.mirrors.tracked.lock();
        // What was committed since the last look is no older than that; nothing else would tell its age.
        if let Some(committed) = moment.committed {
            tracked.commits.note(committed, moment.now);
        }
        let mut figures = Vec::new();
        for (id, info) in self.members_by_id() {
            let matched = replication.get(&id).cloned().flatten().map(|at| at.index);
            figures.push(match id == self.id {
                true => self.own_figure(&moment, info),
                false => self.figure(&mut tracked, &moment, id, info, matched),
            });
        }
        figures
    }

    fn own_figure(&self, moment: &Moment, info: MemberInfo) -> Figure {
        let confirmed = moment.unconfirmed == Some(Duration::ZERO);
        let state = if confirmed { MirrorState::Synchronized } else { MirrorState::Synchronizing };
        let reply = MemberReplication {
            name: info.name,
            site: info.site,
            role: info.role,
            leader: true,
            state,
            state_seconds: seconds(self.led_for()),
            send_queue: Queue::EMPTY,
            redo_queue: Some(Queue::EMPTY),
            lag_seconds: moment.unconfirmed.map(seconds),
            round_trip_seconds: Some(0.0),
            last_contact_seconds: Some(0.0),
            hash_agreed_revision: Some(self.store.revision()),
            applied_index: self.store.applied().map(|applied| applied.index),
            received_index: self.wal.durable_index(),
            received_per_second: 0.0,
            catch_up_seconds: None,
            catch_up_by: Some(CatchUp::Log),
            canary_seconds: None,
            link_sent_bytes: None,
            link_payload_bytes: None,
            reason: (!confirmed).then(|| "no quorum confirms this leader".to_owned()),
        };
        Figure { id: self.id, seen: None, reply }
    }

    fn figure(
        &self,
        tracked: &mut Tracked,
        moment: &Moment,
        id: MemberId,
        info: MemberInfo,
        matched: Option<u64>,
    ) -> Figure {
        let now = moment.now;
        let silent = self.silent_for(id);
        let round_trip = self.contacts.round_trip(id);
        let Tracked { commits, members, .. } = tracked;
        let followed = members.entry(id).or_default();
        let heard = followed.heard.clone();
        let received = matched.max(heard.as_ref().and_then(|heard| heard.standing.received_index));
        let lacks = next(received)..next(moment.committed);
        // None when it lacks something and nothing tells how old that is.
        let send_age = match lacks.is_empty() {
            true => Some(Duration::ZERO),
            false => commits.age(lacks.start, now).or_else(|| self.frame_age(&mut followed.send_time, lacks.start)),
        };
        let send_queue = Queue {
            entries: lacks.end.saturating_sub(lacks.start),
            bytes: match () {
                () if lacks.is_empty() => 0,
                () if lacks.start >= moment.first_in_log => self.wal.bytes_between(lacks.start, lacks.end),
                () => self.store.bytes_from(lacks.start),
            },
            // While nobody confirms this leader, another may be acknowledging writes that are not counted here.
            oldest_seconds: send_age.zip(moment.unconfirmed).map(|(age, unconfirmed)| seconds(age.max(unconfirmed))),
        };
        let redo_queue = heard.as_ref().map(|heard| {
            let standing = &heard.standing;
            // What is received and not known to be committed waits for that, and is not to be applied yet.
            let received = standing.received_index.min(moment.committed);
            let entries = next(received).saturating_sub(next(standing.applied.map(|point| point.position)));
            let bytes = if entries > 0 { standing.redo_bytes } else { 0 };
            Queue { entries, bytes, oldest_seconds: heard.redo_age.map(seconds) }
        });
        let silence_limit = SILENCE_LIMIT.max(self.election_max * 2) + round_trip.unwrap_or_default();
        let answers = silent.is_some_and(|silent| silent <= silence_limit);
        let quarantined = heard.as_ref().and_then(|heard| heard.standing.quarantined.clone());
        let quarantined = quarantined
            .or_else(|| followed.repairing.clone())
            .or_else(|| followed.disagrees.as_ref().map(|(why, _)| why.clone()));
        let suspended = self.mirrors.suspensions.contains(id);
        let redo_age = heard.as_ref().and_then(|heard| heard.redo_age);
        let seen = Seen {
            quarantined: quarantined.is_some(),
            suspended,
            answers,
            behind: redo_age.zip(send_age).map(|(redo, send)| redo.max(send)),
            limit: BEHIND_LIMIT + 2 * round_trip.unwrap_or_default(),
            confirmed: moment.unconfirmed == Some(Duration::ZERO),
        };
        // A leader that has just begun has not heard of anybody yet, and of a member that has just come nobody has.
        let told = heard.is_some() || followed.repairing.is_some();
        let looked_for = now.saturating_duration_since(*followed.since.get_or_insert(now));
        let known = told || suspended || looked_for.min(self.led_for()) > silence_limit;
        let (before, since) = followed.state.unwrap_or((MirrorState::Synchronizing, now));
        let state = if known { state::next(followed.state.map(|(state, _)| state), seen) } else { before };
        let since = if state == before { since } else { now };
        let reason = quarantined.or_else(|| match () {
            () if suspended => Some("it was suspended".to_owned()),
            () if !answers && known => Some(match silent {
                Some(silent) => format!("it has not answered for {:.1} s", silent.as_secs_f64()),
                None => "it has not answered this leader yet".to_owned(),
            }),
            () if !seen.confirmed => Some("no quorum confirms the leader".to_owned()),
            () => None,
        });
        let link = self.links.traffic(id).map(|traffic| (traffic.sent_bytes, traffic.payload_bytes));
        let rate = followed.received.per_second;
        let reply = MemberReplication {
            name: info.name,
            site: info.site,
            role: info.role,
            leader: false,
            state,
            state_seconds: seconds(now.saturating_duration_since(since)),
            send_queue,
            redo_queue,
            lag_seconds: followed.shown_as_of.map(|at| seconds(now.saturating_duration_since(at))),
            round_trip_seconds: round_trip.map(seconds),
            last_contact_seconds: silent.map(seconds),
            hash_agreed_revision: followed.agreed.map(|(_, revision)| revision),
            applied_index: heard.as_ref().and_then(|heard| heard.standing.applied.map(|point| point.position)),
            received_index: received,
            received_per_second: (rate * 10.0).round() / 10.0,
            catch_up_seconds: (send_queue.entries > 0 && rate > 0.0).then(|| send_queue.entries as f64 / rate),
            catch_up_by: self.catch_up_by(followed, received, moment),
            canary_seconds: self.canary_age(followed.canary, now).map(seconds),
            link_sent_bytes: link.map(|(sent, _)| sent),
            link_payload_bytes: link.map(|(_, payload)| payload),
            reason,
        };
        Figure { id, seen: known.then_some(seen), reply }
    }

    /// How long the newest canary took that a member has shown; or how long the newest that was sent is on its way, when
    /// that is longer.
    fn canary_age(&self, shown: Option<(u64, Duration)>, now: Instant) -> Option<Duration> {
        let sent = self.last_canary();
        let missing = sent.filter(|sent| shown.is_none_or(|(time_ms, _)| time_ms != sent.time_ms));
        let on_its_way = missing.map(|sent| now.saturating_duration_since(sent.sent));
        on_its_way.max(shown.map(|(_, took)| took))
    }

    /// The age of an entry that was committed before this member led, at most, by the time inside its frame; none when nothing
    /// tells. That time is by the clock of the leader of then: however far ahead of this one's it went, the entry is no
    /// younger than this lead. What was found is kept in `known`.
    pub(super) fn frame_age(&self, known: &mut Option<(u64, u64)>, index: u64) -> Option<Duration> {
        let time_ms = match known.filter(|(at, _)| *at == index) {
            Some((_, time_ms)) => time_ms,
            None => {
                let time_of = |index| self.store.clock_at(index).ok().flatten();
                // What is not applied here yet has no frame: the next look may find one.
                let time_ms = match time_of(index)? {
                    // The very first entries of a cluster are older than its clock: the next one that has a time tells.
                    0 => (index..index + UNTIMED_MAX).filter_map(time_of).find(|time_ms| *time_ms > 0).unwrap_or(0),
                    found => found,
                };
                *known = Some((index, time_ms));
                time_ms
            }
        };
        let age = || Duration::from_millis(self.clock.now_ms().saturating_sub(time_ms)).max(self.led_for());
        (time_ms > 0).then(age)
    }

    fn catch_up_by(&self, followed: &Followed, received: Option<u64>, moment: &Moment) -> Option<CatchUp> {
        if received.is_none() && followed.heard.is_none() && moment.first_in_log > 0 {
            return None;
        }
        Some(match next(received) {
            wanted if wanted >= moment.first_in_log => CatchUp::Log,
            wanted if wanted > self.store.floors().delta => CatchUp::Delta,
            _ => CatchUp::Full,
        })
    }

    /// What `/v1/replication` says when this member leads.
    pub(in crate::node) fn replication(&self) -> ReplicationReply {
        let unconfirmed = self.unconfirmed_for();
        let mut members: Vec<MemberReplication> = self.look().figures.into_iter().map(|figure| figure.reply).collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        ReplicationReply {
            leader: Some(self.info.name.clone()),
            confirmed: unconfirmed == Some(Duration::ZERO),
            confirmed_seconds: unconfirmed.map(seconds),
            committed_index: self.committed_index(),
            revision: self.store.revision(),
            members,
        }
    }

    /// What this member can say of itself when no leader can be asked.
    pub(in crate::node) fn own_replication(&self) -> ReplicationReply {
        let standing = self.standing();
        let applied = standing.applied.map(|point| point.position);
        let own = MemberReplication {
            name: self.info.name.clone(),
            site: self.info.site.clone(),
            role: self.view().role,
            leader: false,
            state: MirrorState::Disconnected,
            state_seconds: self.lag.get().map_or(0.0, seconds),
            send_queue: Queue { oldest_seconds: None, ..Queue::EMPTY },
            redo_queue: None,
            lag_seconds: self.lag.get().map(seconds),
            round_trip_seconds: None,
            last_contact_seconds: self.lag.get().map(seconds),
            hash_agreed_revision: None,
            applied_index: applied,
            received_index: standing.received_index,
            received_per_second: 0.0,
            catch_up_seconds: None,
            catch_up_by: None,
            canary_seconds: None,
            link_sent_bytes: None,
            link_payload_bytes: None,
            reason: Some("no leader can be asked: what others have committed is not known".to_owned()),
        };
        ReplicationReply {
            leader: None,
            confirmed: false,
            confirmed_seconds: None,
            committed_index: self.committed_index(),
            revision: self.store.revision(),
            members: vec![own],
        }
    }

    /// The standby sites, measured against the objectives.
    pub(super) fn standby_sites(&self, figures: &[Figure]) -> Vec<StandbySite> {
        let mut sites: BTreeMap<&str, Vec<&MemberReplication>> = BTreeMap::new();
        let voters = figures.iter().filter(|figure| figure.reply.role == MemberRole::Voter);
        let with_voters: Vec<&str> = voters.map(|figure| figure.reply.site.as_str()).collect();
        let moves = self.running_switchover().is_some();
        for figure in figures.iter().map(|figure| &figure.reply) {
            let beside_voters = !moves && with_voters.contains(&figure.site.as_str());
            if self.is_standby(figure.role, &figure.site, moves) && !beside_voters {
                sites.entry(&figure.site).or_default().push(figure);
            }
        }
        let objectives = self.objectives;
        let site = |(site, mirrors): (&str, Vec<&MemberReplication>)| {
            let usable = mirrors.iter().filter(|m| m.received_index.is_some() && m.state != MirrorState::Quarantined);
            let best = usable.max_by_key(|mirror| mirror.received_index);
            let rpo = best.and_then(|best| best.send_queue.oldest_seconds);
            let rto = best
                .and_then(|best| best.redo_queue)
                .map(|redo| (redo.entries as f64 / APPLIES_PER_SECOND + FAILOVER_BASE.as_secs_f64()).max(0.0));
            StandbySite {
                site: site.to_owned(),
                best: best.map(|best| best.name.clone()),
                rpo_seconds: rpo,
                rpo_entries: best.map(|best| best.send_queue.entries),
                rpo_met: rpo.is_some_and(|rpo| rpo <= objectives.rpo_seconds),
                rto_seconds: rto,
                rto_met: rto.is_some_and(|rto| rto <= objectives.rto_seconds),
                mirrors: mirrors.into_iter().map(|mirror| mirror.name.clone()).collect(),
            }
        };
        sites.into_iter().map(site).collect()
    }

    /// The same as metrics.
    pub(in crate::node) fn report_replication(&self, s: &mut Sampler) {
        if !self.view().leads {
            return;
        }
        let Look { figures, standby_sites } = self.look();
        for member in figures.iter().map(|figure| &figure.reply) {
            let labels = [member.name.as_str()];
            for state in MirrorState::ALL {
                let labels = [member.name.as_str(), state.as_str()];
                let is = f64::from(u8::from(member.state == state));
                s.gauge_with(&catalogue::MEMBER_STATE, &labels, is);
            }
            let mut figure = |metric, value: Option<f64>| {
                if let Some(value) = value {
                    s.gauge_with(metric, &labels, value);
                }
            };
            let (send, redo) = (member.send_queue, member.redo_queue);
            figure(&catalogue::SEND_QUEUE_ENTRIES, Some(send.entries as f64));
            figure(&catalogue::SEND_QUEUE_BYTES, Some(send.bytes as f64));
            figure(&catalogue::SEND_QUEUE_OLDEST_SECONDS, send.oldest_seconds);
            figure(&catalogue::REDO_QUEUE_ENTRIES, redo.map(|redo| redo.entries as f64));
            figure(&catalogue::REDO_QUEUE_BYTES, redo.map(|redo| redo.bytes as f64));
            figure(&catalogue::REDO_QUEUE_OLDEST_SECONDS, redo.and_then(|redo| redo.oldest_seconds));
            figure(&catalogue::MEMBER_LAG_SECONDS, member.lag_seconds);
            figure(&catalogue::MEMBER_LAST_CONTACT_SECONDS, member.last_contact_seconds);
            figure(&catalogue::MEMBER_HASH_AGREED_REVISION, member.hash_agreed_revision.map(|at| at as f64));
            figure(&catalogue::MEMBER_CANARY_SECONDS, member.canary_seconds);
        }
        for site in standby_sites {
            let labels = [site.site.as_str()];
            let mut figure = |metric, value: Option<f64>| {
                if let Some(value) = value {
                    s.gauge_with(metric, &labels, value);
                }
            };
            figure(&catalogue::RPO_SECONDS, site.rpo_seconds);
            figure(&catalogue::RTO_SECONDS, site.rto_seconds);
        }
        s.gauge(&catalogue::RPO_OBJECTIVE_SECONDS, self.objectives.rpo_seconds);
        s.gauge(&catalogue::RTO_OBJECTIVE_SECONDS, self.objectives.rto_seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Heard, Standing};
    use super::*;
    use crate::node::HealthCheck;
    use crate::node::tests::{eventually, start};

    /// What the leader finds of a member that has answered and has received so far, when so far is committed.
    fn found(inner: &Inner, committed: Option<u64>, received: Option<u64>) -> (Option<Duration>, MirrorState) {
        let figure = figure(inner, committed, received, Some(Duration::ZERO));
        let seen = Seen { answers: true, ..figure.seen.expect("it has answered") };
        (seen.behind, state::next(None, seen))
    }

    /// The same when no quorum has confirmed the leader for so long.
    fn figure(inner: &Inner, committed: Option<u64>, received: Option<u64>, unconfirmed: Option<Duration>) -> Figure {
        let (applied, redo_bytes, canary_ms, quarantined) = (None, 0, None, None);
        let standing =
            Standing { received_index: received, applied, redo_bytes, canary_ms, quarantined, unverified: false };
        let followed =
            Followed { heard: Some(Heard { standing, redo_age: Some(Duration::ZERO) }), ..Followed::default() };
        let moment = Moment { now: Instant::now(), committed, unconfirmed, first_in_log: inner.wal.first_index() };
        // Its own list of members: that of the leader knows nobody else.
        let id = inner.id ^ 1;
        let commits = std::mem::take(&mut inner.mirrors.tracked.lock().commits);
        let mut tracked = Tracked { commits, members: BTreeMap::from([(id, followed)]), ..Tracked::default() };
        let figure = inner.figure(&mut tracked, &moment, id, inner.info.clone(), received);
        inner.mirrors.tracked.lock().commits = tracked.commits;
        figure
    }

    #[tokio::test]
    async fn a_member_that_lacks_what_has_no_time_is_not_synchronized() {
        let dir = tempfile::tempdir().unwrap();
        let (begun, leader) = (Instant::now(), start("n1", dir.path(), None).await);
        eventually("it is ready", || leader.node.health(HealthCheck::Ready).is_ok()).await;
        let inner = &leader.node.0;
        let clock_at = |index| inner.store.frame_at(index).unwrap().map(|frame| frame.head().clock_ms);
        eventually("an entry has a time", || (0..UNTIMED_MAX).filter_map(clock_at).any(|clock_ms| clock_ms > 0)).await;
        assert_eq!(clock_at(0), Some(0), "the beginning has none");
        let committed = inner.committed_index();

        // Nothing of the cluster's beginning is there: its age is that of the first entry that has a time.
        let lacking_since = Instant::now();
        eventually("what it lacks is older than is borne", || {
            let least = lacking_since.elapsed();
            let (behind, state) = found(inner, committed, None);
            let behind = behind.expect("the next entries have a time");
            // The time inside a frame has whole milliseconds.
            let most = begun.elapsed() + Duration::from_millis(1);
            assert!(least <= behind + Duration::from_millis(1) && behind <= most, "{least:?} {behind:?} {most:?}");
            behind > BEHIND_LIMIT && state == MirrorState::Synchronizing
        })
        .await;
        assert_eq!(found(inner, committed, committed), (Some(Duration::ZERO), MirrorState::Synchronized));

        // What this member cannot look at either has no time: how old that is is not known, and that is not zero.
        let beyond = committed.unwrap() + 1000;
        assert_eq!(found(inner, Some(beyond + 10), Some(beyond)), (None, MirrorState::Synchronizing));
        let site = |mut figure: Figure| {
            (figure.reply.role, figure.reply.site) = (MemberRole::Mirror, "west".to_owned());
            let queue = figure.reply.send_queue;
            (queue.entries, queue.oldest_seconds, inner.standby_sites(&[figure]).remove(0))
        };
        let (entries, oldest, west) = site(figure(inner, Some(beyond + 10), Some(beyond), Some(Duration::ZERO)));
        assert_eq!((entries, oldest, west.rpo_seconds, west.rpo_met), (10, None, None, false));

        // Whoever lacks nothing that this leader knows of may lack what another one has committed since then.
        let since = Duration::from_secs(7);
        let (entries, oldest, west) = site(figure(inner, committed, committed, Some(since)));
        assert_eq!((entries, oldest, west.rpo_seconds), (0, Some(7.0), Some(7.0)));
        let (_, oldest, west) = site(figure(inner, committed, committed, None));
        assert_eq!((oldest, west.rpo_seconds, west.rpo_met), (None, None, false));
        let (_, oldest, west) = site(figure(inner, committed, committed, Some(Duration::ZERO)));
        assert_eq!((oldest, west.rpo_seconds, west.rpo_met), (Some(0.0), Some(0.0), true));
        leader.stop().await;
    }
}
