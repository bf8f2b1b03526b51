//! Fetches wanted blobs in the background, from whichever linked member has them. What comes is verified as it streams.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use iroh::endpoint::Connection;
use iroh_blobs::HashAndFormat;
use iroh_blobs::api::remote::GetProgressItem;
use n0_future::StreamExt;
use rand::seq::SliceRandom;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::BlobError;
use super::store::{Disk, Wanted, failed, key};
use crate::clock::monotonic;
use crate::ids::{Hash, NodeId};
use crate::net::iroh::Node;

/// Fetches under way at once.
const AT_ONCE: usize = 8;
const DIAL: Duration = Duration::from_secs(4);
/// A fetch during which nothing comes for this long is given up, and another member is asked.
const STALL: Duration = Duration::from_secs(10);
/// Bytes beyond the stated size that a fetch may bring before it is given up: the size was a lie.
const SLACK: u64 = 64 * 1024;
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What is done when a blob is here.
pub(super) type Then = Box<dyn FnOnce() + Send>;

struct Want {
    size: u64,
    then: Vec<Then>,
    running: bool,
    /// It turned out larger than was stated: it is asked for no more.
    lied: bool,
    failures: u32,
    next: Instant,
}

impl Want {
    fn waits(&self) -> bool {
        !self.running && !self.lied
    }
}

/// Why a member did not give a blob.
enum Miss {
    /// Another may, or the same one later.
    Not(String),
    /// Nobody can: it is larger than was stated.
    Lie,
}

impl From<String> for Miss {
    fn from(reason: String) -> Self {
        Self::Not(reason)
    }
}

#[derive(Default)]
struct Queue(Mutex<BTreeMap<Hash, Want>>);

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("wants", &self.lock().len()).finish()
    }
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Hash, Want>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up to `places` wants that are due; they count as running.
    fn due(&self, now: Instant, places: usize) -> Vec<(Hash, u64)> {
        let mut due = Vec::new();
        for (hash, want) in self.lock().iter_mut() {
            if due.len() == places {
                break;
            }
            if want.waits() && want.next <= now {
                want.running = true;
                due.push((*hash, want.size));
            }
        }
        due
    }

    fn next(&self) -> Option<Instant> {
        self.lock().values().filter(|want| want.waits()).map(|want| want.next).min()
    }

    fn retry_all(&self) {
        for want in self.lock().values_mut() {
            want.failures = 0;
            want.next = monotonic();
        }
    }

    fn failed(&self, hash: &Hash) {
        if let Some(want) = self.lock().get_mut(hash) {
            want.running = false;
            want.next = monotonic() + (FIRST_RETRY * 2u32.saturating_pow(want.failures.min(8))).min(LAST_RETRY);
            want.failures = want.failures.saturating_add(1);
        }
    }
}

/// The background task, as the store holds it.
#[derive(Debug, Clone)]
pub(super) struct Fetcher {
    queue: Arc<Queue>,
    wake: mpsc::UnboundedSender<()>,
    node: watch::Sender<Option<Arc<Node>>>,
    stop: CancellationToken,
    stopped: Arc<tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>>,
}

impl Fetcher {
    /// Starts it on the present tokio runtime.
    pub(super) fn start(disk: Arc<Disk>) -> Self {
        let queue = Arc::new(Queue::default());
        let (wake, woken) = mpsc::unbounded_channel();
        let (node, nodes) = watch::channel(None);
        let stop = CancellationToken::new();
        let work = Work { disk, queue: queue.clone(), pool: Arc::default() };
        let task = tokio::spawn(work.run(woken, nodes, stop.clone()));
        Self { queue, wake, node, stop, stopped: Arc::new(tokio::sync::Mutex::new(Some(task))) }
    }

    pub(super) fn attach(&self, node: Arc<Node>) {
        self.node.send_replace(Some(node));
    }

    pub(super) fn want(&self, hash: Hash, size: u64, then: Then) {
        match self.queue.lock().entry(hash) {
            Entry::Occupied(mut known) => known.get_mut().then.push(then),
            Entry::Vacant(place) => {
                place.insert(Want {
                    size,
                    then: vec![then],
                    running: false,
                    lied: false,
                    failures: 0,
                    next: monotonic(),
                });
            }
        }
        if self.wake.send(()).is_err() {
            tracing::debug!("a blob was wanted after the store was closed");
        }
    }

    pub(super) fn wanted(&self) -> Wanted {
        let wants = self.queue.lock();
        Wanted { blobs: wants.len(), bytes: wants.values().map(|want| want.size).sum() }
    }

    pub(super) async fn stop(&self) {
        self.stop.cancel();
        if let Some(task) = self.stopped.lock().await.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the fetching of blobs died");
        }
        self.node.send_replace(None);
    }
}

/// Connections that fetches share, one a member.
type Pool = Arc<tokio::sync::Mutex<BTreeMap<NodeId, Connection>>>;

#[derive(Clone)]
struct Work {
    disk: Arc<Disk>,
    queue: Arc<Queue>,
    pool: Pool,
}

impl Work {
    async fn run(
        self,
        mut woken: mpsc::UnboundedReceiver<()>,
        mut nodes: watch::Receiver<Option<Arc<Node>>>,
        stop: CancellationToken,
    ) {
        let mut running = JoinSet::new();
        let mut links = None;
        loop {
            let node = nodes.borrow_and_update().clone();
            if let Some(node) = &node
                && links.is_none()
            {
                links = Some(node.watch_links());
            }
            for (hash, size) in self.queue.due(monotonic(), AT_ONCE - running.len()) {
                running.spawn(self.clone().fetch(hash, size, node.clone()));
            }
            if running.is_empty() && self.queue.lock().is_empty() {
                self.pool.lock().await.clear();
            }
            let next = if running.len() < AT_ONCE { self.queue.next() } else { None };
            tokio::select! {
                () = stop.cancelled() => break,
                Some(()) = woken.recv() => {}
                Some(done) = running.join_next() => {
                    if let Err(error) = done {
                        tracing::error!(%error, "a fetch died");
                    }
                }
                Ok(()) = nodes.changed() => {
                    links = None;
                    self.queue.retry_all();
                }
                () = linked(&mut links) => self.queue.retry_all(),
                () = until(next) => {}
            }
        }
        running.shutdown().await;
    }

    async fn fetch(self, hash: Hash, size: u64, node: Option<Arc<Node>>) {
        match self.bring(&hash, size, node).await {
            Ok(true) => {
                let then = self.queue.lock().remove(&hash).map(|want| want.then).unwrap_or_default();
                let called = tokio::task::spawn_blocking(move || then.into_iter().for_each(|then| then()));
                if let Err(error) = called.await {
                    tracing::error!(%error, "what follows a fetch died");
                }
            }
            Ok(false) => self.queue.failed(&hash),
            Err(error) => {
                tracing::warn!(%error, hash = %hash.short(), "a blob could not be kept");
                self.queue.failed(&hash);
            }
        }
    }

    /// Whether the blob is here and kept now.
    async fn bring(&self, hash: &Hash, size: u64, node: Option<Arc<Node>>) -> Result<bool, BlobError> {
        if self.disk.size_if_complete(hash).await?.is_some() {
            self.disk.keep(hash).await?;
            return Ok(true);
        }
        let Some(node) = node else { return Ok(false) };
        let _held = self.disk.store().tags().temp_tag(HashAndFormat::raw(key(hash))).await.map_err(failed)?;
        let mut members: Vec<_> = node.watch_links().borrow().keys().copied().collect();
        members.shuffle(&mut rand::rng());
        for member in members.into_iter().filter(|member| node.admits(member)) {
            match self.fetch_from(&node, member, hash, size).await {
                Ok(()) => {
                    self.disk.keep(hash).await?;
                    return Ok(true);
                }
                Err(Miss::Lie) => {
                    tracing::warn!(hash = %hash.short(), size, "a blob is larger than its entry says: it is not fetched");
                    if let Some(want) = self.queue.lock().get_mut(hash) {
                        want.lied = true;
                    }
                    return Ok(false);
                }
                Err(Miss::Not(reason)) => {
                    tracing::debug!(member = %member.short(), hash = %hash.short(), reason, "not fetched");
                }
            }
        }
        Ok(false)
    }

    async fn fetch_from(&self, node: &Node, member: NodeId, hash: &Hash, size: u64) -> Result<(), Miss> {
        let connection = self.connection(node, member).await?;
        let fetch = self.disk.store().remote().fetch(connection, HashAndFormat::raw(key(hash)));
        let mut progress = std::pin::pin!(fetch.stream());
        loop {
            match timeout(STALL, progress.next()).await {
                Ok(Some(GetProgressItem::Progress(bytes))) if bytes > size.saturating_add(SLACK) => {
                    return Err(Miss::Lie);
                }
                Ok(Some(GetProgressItem::Progress(_))) => {}
                Ok(Some(GetProgressItem::Done(_))) => break,
                Ok(Some(GetProgressItem::Error(error))) => return Err(format!("{error:#}").into()),
                Ok(None) => return Err("the fetch ended early".to_owned().into()),
                Err(_elapsed) => return Err(format!("nothing came for {STALL:?}").into()),
            }
        }
        match self.disk.size_if_complete(hash).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err("it has only a part".to_owned().into()),
            Err(error) => Err(error.to_string().into()),
        }
    }

    async fn connection(&self, node: &Node, member: NodeId) -> Result<Connection, String> {
        if let Some(known) = self.pool.lock().await.get(&member)
            && known.close_reason().is_none()
        {
            return Ok(known.clone());
        }
        let made = node.dial_bulk(member, iroh_blobs::ALPN, DIAL).await?;
        self.pool.lock().await.insert(member, made.clone());
        Ok(made)
    }
}

async fn linked(links: &mut Option<watch::Receiver<BTreeMap<NodeId, Connection>>>) {
    if let Some(links) = links
        && links.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
