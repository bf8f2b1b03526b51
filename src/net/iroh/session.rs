//! One link with one peer: a QUIC connection, one stream of frames in each direction, and probes.
//!
//! The dialler opens the stream and sends a greeting; the acceptor answers with its own. Only then is the link up: the
//! far end's gate may close the connection just after the handshake. Greetings and frames are a length (u32,
//! big-endian) and that many bytes. Probes are datagrams, so that a peer that is busy with a large frame still
//! answers: `[1, number]` asks, `[2, number]` answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::iroh::TransportAddr;
use ::iroh::endpoint::{Connection, ConnectionError, RecvStream, SendStream};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{Refused, close};
use crate::clock::monotonic;
use crate::ids::NodeId;
use crate::net::link::Event;
use crate::replication::limits;

/// How long the two greetings may take.
pub(super) const GREETING: Duration = Duration::from_secs(3);
/// Between two probes.
const PROBE: Duration = Duration::from_millis(700);
/// Without an answer to probes for this long, or four round trips if that is longer, the peer is taken for dead.
const SILENCE: Duration = Duration::from_millis(2_000);
/// The same, after something about our own network has changed.
const SILENCE_AFTER_CHANGE: Duration = Duration::from_millis(1_000);
const GREETING_BYTES: usize = 4_096;
/// Frames that are ready are written together up to this size: many small writes are dear, and a stalled reader's connection dies of them.
const WRITE: usize = 64 * 1024;
/// Bytes that may wait to be sent to one peer. Senders keep to credits far below this.
const QUEUE: usize = 64 * 1024 * 1024;

/// What each end says first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Greeting {
    /// Where the sender can be reached, as far as it knows.
    pub(super) addresses: Vec<SocketAddr>,
    /// Drawn when the sender started.
    pub(super) run: u64,
    /// Counts the sender's greetings.
    pub(super) number: u64,
}

impl Greeting {
    /// Whether its sender made it before `other`: it may come later, over another connection.
    pub(super) const fn is_before(&self, other: &Self) -> bool {
        self.run == other.run && self.number < other.number
    }
}

/// A connection whose streams stand.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) peer: NodeId,
    pub(super) connection: Connection,
    send: SendStream,
    receive: RecvStream,
    /// What the peer said first.
    pub(super) greeting: Greeting,
    /// Whether the peer still waits for our greeting.
    greet: bool,
}

impl Session {
    /// Greets over a connection that this node dialled.
    pub(super) async fn dialled(connection: Connection, mine: &Greeting) -> Result<Self, String> {
        let greeted = timeout(GREETING, async {
            let (mut send, mut receive) = connection.open_bi().await.map_err(|error| why(&error))?;
            write_greeting(&mut send, mine).await?;
            let greeting = read_greeting(&mut receive).await?;
            Ok((send, receive, greeting))
        });
        match greeted.await {
            Ok(Ok((send, receive, greeting))) => {
                let peer = NodeId(*connection.remote_id().as_bytes());
                Ok(Self { peer, connection, send, receive, greeting, greet: false })
            }
            Ok(Err(reason)) => Err(connection.close_reason().map_or(reason, |error| why(&error))),
            Err(_elapsed) => {
                connection.close(close::DEAD.into(), b"no greeting");
                Err("it does not answer".to_owned())
            }
        }
    }

    /// Takes the greeting on a connection that a peer dialled. It is answered when the session runs.
    pub(super) async fn accepted(connection: Connection) -> Result<Self, String> {
        let greeted = timeout(GREETING, async {
            let (send, mut receive) = connection.accept_bi().await.map_err(|error| why(&error))?;
            let greeting = read_greeting(&mut receive).await?;
            Ok::<_, String>((send, receive, greeting))
        });
        let (send, receive, greeting) = greeted.await.map_err(|_elapsed| "it does not greet".to_owned())??;
        let peer = NodeId(*connection.remote_id().as_bytes());
        Ok(Self { peer, connection, send, receive, greeting, greet: true })
    }
}

/// Frames on their way to the peer, and how many bytes they are.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    frames: mpsc::UnboundedSender<Bytes>,
    queued: Arc<AtomicUsize>,
}

impl Outgoing {
    /// Queues a frame. False if the peer takes too little: the link has to be closed.
    pub(super) fn push(&self, frame: Bytes) -> bool {
        let before = self.queued.fetch_add(frame.len(), Ordering::Relaxed);
        before < QUEUE && self.frames.send(frame).is_ok()
    }
}

/// How a session ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Why, in words.
    pub(super) reason: String,
    /// Whether the peer stopped answering, rather than closed.
    pub(super) dead: bool,
    /// Why the peer does not let this node in, if it ended it for that.
    pub(super) refused: Option<Refused>,
}

impl Ended {
    fn of(connection: &Connection, reason: String, dead: bool) -> Self {
        let reason = connection.close_reason().map_or(reason, |error| why(&error));
        Self { reason, dead, refused: Refused::told(connection) }
    }
}

/// Runs a session to its end: first waits for `earlier` (the session that it replaces) to be over, so that events of two sessions never mix.
pub(super) fn start(
    session: Session,
    mine: Greeting,
    earlier: Option<JoinHandle<()>>,
    events: mpsc::Sender<Event>,
    changed: watch::Receiver<u64>,
    ended: impl FnOnce(Ended) + Send + 'static,
) -> (Outgoing, JoinHandle<()>) {
    let (frames, queue) = mpsc::unbounded_channel();
    let outgoing = Outgoing { frames, queued: Arc::default() };
    let queued = outgoing.queued.clone();
    let task = tokio::spawn(async move {
        if let Some(earlier) = earlier
            && let Err(error) = earlier.await
        {
            tracing::error!(%error, "a link's task died");
        }
        let (peer, connection) = (session.peer, session.connection.clone());
        let address = remote_address(&connection);
        if events.send(Event::Connected { peer, address }).await.is_err() {
            return;
        }
        let end = run(session, mine, queue, &queued, &events, changed).await;
        connection.close(close::DEAD.into(), end.reason.as_bytes());
        tracing::debug!(peer = %peer.short(), reason = end.reason, "link lost");
        let lost = Event::Lost { peer, reason: end.reason.clone() };
        ended(end);
        if events.send(lost).await.is_err() {
            tracing::debug!("nobody listens to the network's events any more");
        }
    });
    (outgoing, task)
}

async fn run(
    session: Session,
    mine: Greeting,
    queue: mpsc::UnboundedReceiver<Bytes>,
    queued: &AtomicUsize,
    events: &mpsc::Sender<Event>,
    changed: watch::Receiver<u64>,
) -> Ended {
    let Session { peer, connection, mut send, receive, greet, .. } = session;
    if greet && let Err(reason) = write_greeting(&mut send, &mine).await {
        return Ended::of(&connection, reason, false);
    }
    let answered = Answered::new();
    let reason = tokio::select! {
        reason = write_frames(send, queue, queued) => reason,
        reason = read_frames(receive, peer, events) => reason,
        reason = answer_probes(&connection, &answered) => reason,
        reason = probe(&connection, &answered, changed) => return Ended { reason, dead: true, refused: None },
        error = connection.closed() => why(&error),
    };
    let dead = matches!(connection.close_reason(), Some(ConnectionError::TimedOut));
    Ended::of(&connection, reason, dead)
}

async fn write_greeting(send: &mut SendStream, greeting: &Greeting) -> Result<(), String> {
    let bytes = postcard::to_stdvec(greeting).map_err(|error| error.to_string())?;
    let mut framed = BytesMut::with_capacity(4 + bytes.len());
    framed.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    framed.put_slice(&bytes);
    send.write_all(&framed).await.map_err(|error| error.to_string())
}

async fn read_greeting(receive: &mut RecvStream) -> Result<Greeting, String> {
    let bytes = read_frame(receive, GREETING_BYTES).await?;
    postcard::from_bytes(&bytes).map_err(|error| format!("a greeting that can't be read: {error}"))
}

async fn read_frame(receive: &mut RecvStream, limit: usize) -> Result<Bytes, String> {
    let mut length = [0; 4];
    receive.read_exact(&mut length).await.map_err(|error| error.to_string())?;
    let length = u32::from_be_bytes(length) as usize;
    if length > limit {
        return Err(format!("a frame of {length} bytes, the limit is {limit}"));
    }
    let mut frame = BytesMut::zeroed(length);
    receive.read_exact(&mut frame).await.map_err(|error| error.to_string())?;
    Ok(frame.freeze())
}

async fn read_frames(mut receive: RecvStream, peer: NodeId, events: &mpsc::Sender<Event>) -> String {
    loop {
        match read_frame(&mut receive, limits::FRAME).await {
            Ok(frame) => {
                if events.send(Event::Received { peer, frame }).await.is_err() {
                    return "shutting down".to_owned();
                }
            }
            Err(reason) => return reason,
        }
    }
}

async fn write_frames(mut send: SendStream, mut queue: mpsc::UnboundedReceiver<Bytes>, queued: &AtomicUsize) -> String {
    let mut buffer = BytesMut::with_capacity(WRITE);
    while let Some(frame) = queue.recv().await {
        let mut next = Some(frame);
        while let Some(frame) = next {
            queued.fetch_sub(frame.len(), Ordering::Relaxed);
            buffer.put_u32(u32::try_from(frame.len()).unwrap_or(u32::MAX));
            buffer.put_slice(&frame);
            next = if buffer.len() < WRITE { queue.try_recv().ok() } else { None };
        }
        if let Err(error) = send.write_all(&buffer.split()).await {
            return error.to_string();
        }
    }
    // Nobody can send any more: the hub has let go of this link and closes it. Its reason is the one to report.
    std::future::pending().await
}

/// When the peer last answered a probe, in milliseconds after `start`.
struct Answered {
    start: Instant,
    at: AtomicU64,
}

impl Answered {
    fn new() -> Self {
        Self { start: monotonic(), at: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        u64::try_from(monotonic().duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }
}

async fn answer_probes(connection: &Connection, answered: &Answered) -> String {
    loop {
        let datagram = match connection.read_datagram().await {
            Ok(datagram) => datagram,
            Err(error) => return why(&error),
        };
        match datagram.first() {
            Some(1) => {
                let mut answer = BytesMut::from(&datagram[..]);
                answer[0] = 2;
                send_datagram(connection, answer.freeze());
            }
            Some(2) => answered.at.store(answered.now(), Ordering::Relaxed),
            // A newer peer may have other datagrams.
            Some(_) | None => {}
        }
    }
}

fn send_datagram(connection: &Connection, datagram: Bytes) {
    if let Err(error) = connection.send_datagram(datagram) {
        tracing::trace!(%error, "a probe was not sent");
    }
}

/// Returns when the peer has not answered for too long.
async fn probe(connection: &Connection, answered: &Answered, mut changed: watch::Receiver<u64>) -> String {
    let mut number: u8 = 0;
    let mut last_tick = answered.now();
    let mut deadline_after_change = None;
    loop {
        number = number.wrapping_add(1);
        send_datagram(connection, Bytes::copy_from_slice(&[1, number]));
        tokio::select! {
            () = sleep(PROBE / if deadline_after_change.is_some() { 4 } else { 1 }) => {}
            Ok(()) = changed.changed() => {
                deadline_after_change = Some((answered.now(), answered.now() + millis(SILENCE_AFTER_CHANGE)));
            }
        }
        let now = answered.now();
        if now.saturating_sub(last_tick) > millis(SILENCE) / 2 {
            // This very task was kept from running, by a sleeping machine or a full one: the silence may be ours.
            answered.at.store(now, Ordering::Relaxed);
        }
        last_tick = now;
        let heard = answered.at.load(Ordering::Relaxed);
        if let Some((since, deadline)) = deadline_after_change {
            if heard > since {
                deadline_after_change = None;
            } else if now > deadline {
                return "no answer since the network changed".to_owned();
            }
        }
        let patience = millis(SILENCE).max(round_trip(connection).map_or(0, |rtt| 4 * millis(rtt)));
        if now.saturating_sub(heard) > patience {
            return format!("no answer for {} ms", now.saturating_sub(heard));
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The round-trip time of the path in use.
pub(super) fn round_trip(connection: &Connection) -> Option<Duration> {
    let paths = connection.paths();
    paths.iter().find(|path| path.is_selected()).or_else(|| paths.iter().next()).map(|path| path.rtt())
}

/// The far end of the path in use, for people.
pub(super) fn remote_address(connection: &Connection) -> Option<String> {
    let paths = connection.paths();
    let path = paths.iter().find(|path| path.is_selected()).or_else(|| paths.iter().next())?;
    Some(match path.remote_addr() {
        TransportAddr::Ip(address) => address.to_string(),
        TransportAddr::Relay(url) => format!("relay {url}"),
        other => format!("{other:?}"),
    })
}

/// The far end of the path in use, for dialling.
pub(super) fn direct_address(connection: &Connection) -> Option<SocketAddr> {
    let paths = connection.paths();
    let path = paths
        .iter()
        .find(|path| path.is_selected() && path.is_ip())
        .or_else(|| paths.iter().find(|path| path.is_ip()))?;
    if let TransportAddr::Ip(address) = path.remote_addr() { Some(*address) } else { None }
}

/// A connection's end, in words.
pub(super) fn why(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(closed) => {
            format!("closed by the peer: {} ({})", String::from_utf8_lossy(&closed.reason), closed.error_code)
        }
        ConnectionError::LocallyClosed => "closed here".to_owned(),
        ConnectionError::TimedOut => "timed out".to_owned(),
        ConnectionError::Reset => "the peer was restarted".to_owned(),
        other => other.to_string(),
    }
}
