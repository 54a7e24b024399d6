//! Links to the other members: what is compressed, how fast it may go, and how much has gone.
//!
//! ```text
//! append_stream ─┐ payload                         ┌─ wire
//! copy ──────────┴────────> Encoder (other sites) ──> Link::pass (cap) ──> connection
//! ```
//!
//! Only what goes to a member of another site is compressed and bound: within a site a network costs less than a
//! processor. Compression is agreed for each stream: the request names it in a header, and a member that can undo it names
//! it in its reply; an older one does not, and is sent what it knows.
//!
//! Invariants: what is decoded is checked by the checksums of the frames in it, so a damaged stream ends and is never
//! misread; a decoder takes bounded memory whatever it is fed; the cap of one member holds over its append stream and
//! copies together, and waiting for it blocks no thread. Proven by the tests below, in [`super::append_stream`], and by
//! `tests/mirrors/links.rs`.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::time::Instant;
use zstd::stream::raw::{CParameter, DParameter, InBuffer, Operation, OutBuffer};

use crate::model::MemberId;

/// Names how a stream is compressed: in a request what is offered, in a reply what is taken.
pub const COMPRESSION: HeaderName = HeaderName::from_static("lifeboat-compression");
/// The only compression there is.
const ZSTD: HeaderValue = HeaderValue::from_static("zstd");
/// zstd's own default: beyond it the processor pays more than the link gains.
const LEVEL: i32 = 3;
/// What an encoder refers back to, and so the memory of one in the member that decodes: 2 MiB.
const WINDOW_LOG: u32 = 21;
/// One step of decoding gives at most so many bytes, whatever it is fed.
const STEP_BYTES: usize = 256 << 10;
/// A stream that waited may catch up on so much of its cap at once.
const BURST: Duration = Duration::from_millis(50);
/// So many slices of a capped stream pass in a second; each waits for its turn.
const SLICES_PER_SECOND: u64 = 32;
/// No slice is smaller or larger.
const SLICE_BYTES: (u64, u64) = (512, 64 << 10);

/// Whether these headers name the compression that this program knows.
pub fn names_compression(headers: &HeaderMap) -> bool {
    headers.get(COMPRESSION).is_some_and(|value| *value == ZSTD)
}

/// Names the compression in the headers of a request or a reply.
pub fn name_compression(headers: &mut HeaderMap) {
    headers.insert(COMPRESSION, ZSTD);
}

/// How this member treats its links to members of other sites.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Where this member stands.
    pub site: String,
    /// Whether to compress.
    pub compression: bool,
    /// The cap for each member, in bytes a second; 0 for none.
    pub bandwidth_bytes: u64,
}

/// What has gone to one member since this process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkTraffic {
    /// Bytes of append streams and copies, as they were written to connections.
    pub sent_bytes: u64,
    /// The same before it was compressed.
    pub payload_bytes: u64,
}

/// The links of one member to all others. Clones share them.
#[derive(Debug, Clone)]
pub struct Links(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: LinkConfig,
    /// As many as there are members that this one has ever dialled since it started.
    links: Mutex<BTreeMap<MemberId, Arc<Link>>>,
}

impl Links {
    /// No link yet.
    pub fn new(config: LinkConfig) -> Links {
        Links(Arc::new(Shared { config, links: Mutex::default() }))
    }

    /// The link to a member of this site.
    pub fn to(&self, member: MemberId, site: &str) -> Arc<Link> {
        let LinkConfig { site: own, compression, bandwidth_bytes } = &self.0.config;
        let far = site != own;
        let mut links = self.0.links.lock();
        let link = links.entry(member).or_insert_with(|| {
            let cap = (far && *bandwidth_bytes > 0).then(|| Cap::new(*bandwidth_bytes));
            Arc::new(Link {
                far,
                compress: far && *compression,
                cap,
                sent: AtomicU64::new(0),
                payload: AtomicU64::new(0),
            })
        });
        link.clone()
    }

    /// What has gone to a member; `None` when nothing was ever to go.
    pub fn traffic(&self, member: MemberId) -> Option<LinkTraffic> {
        self.0.links.lock().get(&member).map(|link| link.traffic())
    }
}

/// The link to one member.
#[derive(Debug)]
pub struct Link {
    far: bool,
    compress: bool,
    cap: Option<Cap>,
    sent: AtomicU64,
    payload: AtomicU64,
}

impl Link {
    /// Whether the member stands in another site.
    pub fn is_far(&self) -> bool {
        self.far
    }

    /// Whether to offer compression.
    pub fn offers_compression(&self) -> bool {
        self.compress
    }

    /// The cap in bytes a second.
    pub fn cap(&self) -> Option<u64> {
        self.cap.as_ref().map(|cap| cap.bytes_per_second)
    }

    /// What has gone so far.
    pub fn traffic(&self) -> LinkTraffic {
        LinkTraffic {
            sent_bytes: self.sent.load(Ordering::Relaxed),
            payload_bytes: self.payload.load(Ordering::Relaxed),
        }
    }

    /// Counts bytes before they are compressed.
    pub fn count_payload(&self, bytes: usize) {
        self.payload.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The most bytes to hand to a connection at once.
    pub fn slice_bytes(&self) -> usize {
        match &self.cap {
            Some(cap) => (cap.bytes_per_second / SLICES_PER_SECOND).clamp(SLICE_BYTES.0, SLICE_BYTES.1) as usize,
            None => usize::MAX,
        }
    }

    /// Waits until the cap lets so many bytes pass, no more than a slice, and counts them as sent.
    pub async fn pass(&self, bytes: usize) {
        if let Some(cap) = &self.cap {
            tokio::time::sleep_until(cap.reserve(Instant::now(), bytes)).await;
        }
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A token bucket.
#[derive(Debug)]
struct Cap {
    bytes_per_second: u64,
    /// When all that was reserved has passed.
    free_at: Mutex<Instant>,
}

impl Cap {
    fn new(bytes_per_second: u64) -> Cap {
        Cap { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// When so many bytes more have passed.
    fn reserve(&self, now: Instant, bytes: usize) -> Instant {
        let mut free_at = self.free_at.lock();
        let begin = (*free_at).max(now.checked_sub(BURST).unwrap_or(now));
        *free_at = begin + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        *free_at
    }
}

/// Compresses one stream, piece by piece: each piece can be decoded when it has arrived, and refers to those before it.
pub struct Encoder(zstd::stream::raw::Encoder<'static>);

impl Encoder {
    /// The beginning of a stream.
    pub fn new() -> io::Result<Encoder> {
        let mut encoder = zstd::stream::raw::Encoder::new(LEVEL)?;
        encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
        Ok(Encoder(encoder))
    }

    /// The next piece.
    pub fn encode(&mut self, payload: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(payload.len() / 2 + 1024);
        let mut input = InBuffer::around(payload);
        loop {
            // Room for more is asked for, so that every round goes on.
            out.reserve(16 << 10);
            let at = out.len();
            let mut output = OutBuffer::around_pos(&mut out, at);
            if input.pos() < payload.len() {
                self.0.run(&mut input, &mut output)?;
            } else if self.0.flush(&mut output)? == 0 {
                return Ok(out);
            }
        }
    }
}

/// Undoes what an [`Encoder`] has done.
pub struct Decoder {
    decoder: zstd::stream::raw::Decoder<'static>,
    /// What has arrived and was not looked at.
    input: BytesMut,
    /// The last step ended because it had given enough.
    more: bool,
    step: Vec<u8>,
}

impl Decoder {
    /// The beginning of a stream.
    pub fn new() -> io::Result<Decoder> {
        let mut decoder = zstd::stream::raw::Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
        Ok(Decoder { decoder, input: BytesMut::new(), more: false, step: vec![0; STEP_BYTES] })
    }

    /// Where to put what arrives.
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.input
    }

    /// Adds a bounded piece of what was decoded to `out`. Says whether there was any; otherwise more must arrive first.
    pub fn step(&mut self, out: &mut BytesMut) -> io::Result<bool> {
        while self.more || !self.input.is_empty() {
            let mut input = InBuffer::around(&self.input[..]);
            let mut output = OutBuffer::around(&mut self.step[..]);
            self.decoder.run(&mut input, &mut output)?;
            let (taken, given) = (input.pos(), output.pos());
            self.input.advance(taken);
            let had_more = std::mem::replace(&mut self.more, given == STEP_BYTES);
            out.extend_from_slice(&self.step[..given]);
            if given > 0 {
                return Ok(true);
            }
            if taken == 0 && !had_more {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a compressed stream that does not go on"));
            }
        }
        Ok(false)
    }
}

/// A body that was compressed, as it was before. What cannot be decoded is an error, and the last that comes.
pub fn decode_body<S, E>(body: S) -> impl Stream<Item = Result<Bytes, String>>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    let begin = Decoder::new().map(|decoder| (body, decoder));
    futures_util::stream::unfold(Some(begin), |state| async move {
        let (mut body, mut decoder) = match state? {
            Ok(state) => state,
            Err(e) => return Some((Err(e.to_string()), None)),
        };
        let mut out = BytesMut::new();
        loop {
            match decoder.step(&mut out) {
                Ok(true) => return Some((Ok(out.freeze()), Some(Ok((body, decoder))))),
                Ok(false) => {}
                Err(e) => return Some((Err(format!("it cannot be decompressed: {e}")), None)),
            }
            match body.next().await? {
                Ok(chunk) => decoder.input().extend_from_slice(&chunk),
                Err(e) => return Some((Err(e.to_string()), None)),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces() -> Vec<Vec<u8>> {
        let json = |i: usize| format!("{{\"id\":{i},\"name\":\"customer {i}\",\"city\":\"Hamburg\",\"active\":true}}");
        let mut pieces: Vec<Vec<u8>> = (0..200).map(|i| json(i).into_bytes()).collect();
        pieces.push(Vec::new());
        // More than a window, so that it moves; and what is decoded from little.
        pieces.push((0..5u32 << 20).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect());
        pieces.push(vec![0; 3 << 20]);
        pieces.push(json(1).into_bytes());
        pieces
    }

    fn decode_all(decoder: &mut Decoder) -> io::Result<BytesMut> {
        let mut out = BytesMut::new();
        loop {
            let before = out.len();
            if !decoder.step(&mut out)? {
                return Ok(out);
            }
            assert!(out.len() - before <= STEP_BYTES);
        }
    }

    #[test]
    fn each_piece_can_be_decoded_as_soon_as_it_has_arrived() {
        let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::new().unwrap());
        for piece in pieces() {
            let wire = encoder.encode(&piece).unwrap();
            decoder.input().extend_from_slice(&wire);
            assert!(decode_all(&mut decoder).unwrap() == piece, "a piece of {} bytes", piece.len());
        }
    }

    #[test]
    fn later_pieces_refer_to_earlier_ones() {
        let mut encoder = Encoder::new().unwrap();
        let pieces = &pieces()[..200];
        let payload: usize = pieces.iter().map(Vec::len).sum();
        let wire: usize = pieces.iter().map(|piece| encoder.encode(piece).unwrap().len()).sum();
        assert!(wire * 2 < payload, "{payload} bytes became {wire}");
    }

    #[tokio::test]
    async fn a_body_is_decoded_in_whatever_chunks_it_comes_and_a_broken_one_ends_with_an_error() {
        let mut encoder = Encoder::new().unwrap();
        let payload = vec![7; 1 << 20];
        let wire = encoder.encode(&payload).unwrap();
        let body =
            futures_util::stream::iter(wire.chunks(3).map(|chunk| Ok::<_, String>(Bytes::copy_from_slice(chunk))));
        let chunks: Vec<Bytes> = decode_body(body).map(Result::unwrap).collect().await;
        assert!(chunks.concat() == payload);

        let broken = [Ok(Bytes::from_static(b"this is no frame of zstd")), Err("unreachable")];
        let chunks: Vec<_> = decode_body(futures_util::stream::iter(broken)).collect().await;
        assert!(matches!(&chunks[..], [Err(why)] if why.contains("decompressed")), "{chunks:?}");
    }

    #[test]
    fn a_cap_holds_over_all_that_share_it_whatever_each_takes() {
        let cap = Cap::new(100_000);
        let start = Instant::now();
        let (mut now, mut other) = (start, start);
        for _ in 0..250 {
            // Two streams, each of which waits until its piece has passed; the second comes to it a little late.
            now = cap.reserve(now, 1000).max(now);
            other = cap.reserve(other + Duration::from_millis(1), 1000).max(other);
        }
        let took = now.max(other).duration_since(start).as_secs_f64();
        assert!((4.9..5.1).contains(&took), "500 kB at 100 kB/s took {took} s");
    }

    #[test]
    fn time_in_which_nothing_was_sent_is_not_saved_up() {
        let cap = Cap::new(100_000);
        let start = Instant::now() + Duration::from_secs(3600);
        let passed = (0..100).map(|_| cap.reserve(start, 1000)).last().unwrap().duration_since(start);
        assert!(passed >= Duration::from_secs(1) - BURST && passed <= Duration::from_secs(1), "{passed:?}");
    }

    #[tokio::test]
    async fn only_members_of_other_sites_are_compressed_and_capped() {
        let links = Links::new(LinkConfig { site: "east".into(), compression: true, bandwidth_bytes: 32_000 });
        let (near, far) = (links.to(2, "east"), links.to(1, "west"));
        assert!(!near.is_far() && !near.offers_compression() && near.cap().is_none());
        assert!(far.is_far() && far.offers_compression() && far.cap() == Some(32_000) && far.slice_bytes() == 1000);
        near.count_payload(7);
        near.pass(1 << 40).await;
        let traffic = LinkTraffic { sent_bytes: 1 << 40, payload_bytes: 7 };
        assert_eq!((links.traffic(2), links.traffic(3)), (Some(traffic), None));
        let off = Links::new(LinkConfig { site: "east".into(), compression: false, bandwidth_bytes: 0 }).to(1, "west");
        assert!(off.is_far() && !off.offers_compression() && off.cap().is_none());
    }
}
