//! Runs a [`Replica`] on a real network and real logs.
//!
//! One thread, "sync", holds the replica: it takes what happens from the network, the logs and the clock, and hands on
//! what is to be done. It reads the stores' durable views itself (memory, mostly), but never waits for the disk.
//! Entries of peers are verified and included on one thread a store, "ingest", in the order in which they came.
//!
//! What is asked of the network is kept here while its channel is full, so that its reports are taken even then:
//! two full channels that wait for each other can't happen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::ingest::{Batch, Ingest, Report};
use super::log::{Durable, Log};
use super::replica::{Identity, Input, Output, Replica, Snapshot};
use super::shelf::{LogShelf, Logs};
use crate::clock::{Clock, Millis, monotonic};
use crate::ids::{NodeId, StoreId};
use crate::net::link::{Command, Event, Network};

/// How often the state of things is published at most.
const PUBLISH: Duration = Duration::from_millis(20);
/// How far the wall clock must be ahead of where it was expected for the machine to have slept.
const SLEPT: Duration = Duration::from_secs(5);
/// Commands kept for a full channel, above which gossip, being but a hint, is dropped.
const PENDING: usize = 4_096;

/// Whom the driver serves: the stores of a mesh.
pub trait Host: Logs {
    /// The gossip topic of a store; `None` while the mesh's salt is not known.
    fn topic(&self, store: &StoreId) -> Option<[u8; 32]>;

    /// Changes whenever a store was opened or closed.
    fn changed(&self) -> watch::Receiver<u64>;

    /// Gives every entry of every log, present and later, to `outbox` once it is durable. It doesn't block.
    fn outbox(&self, outbox: Arc<dyn Fn(Durable) + Send + Sync>);
}

enum Inbox {
    Durable(Durable),
    Ingested(Report),
    Reconcile,
    Stop,
}

/// A running driver. Dropping it stops it without waiting.
pub struct Driver {
    inbox: mpsc::UnboundedSender<Inbox>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

impl Driver {
    /// Starts to replicate `host`'s stores over `network`.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        identity: Identity,
        clock: Arc<dyn Clock>,
        network: Network,
        host: Arc<dyn Host>,
    ) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (inbox, inputs) = mpsc::unbounded_channel();
        let (publish, snapshot) = watch::channel(Arc::default());
        let outbox = inbox.clone();
        host.outbox(Arc::new(move |durable| {
            // After the driver's end nobody is told.
            drop(outbox.send(Inbox::Durable(durable)));
        }));
        let state = Loop {
            replica: Replica::new(identity),
            time: Time::new(clock),
            host,
            commands: network.commands,
            pending: VecDeque::new(),
            workers: BTreeMap::new(),
            topics: BTreeMap::new(),
            unsubscribed: BTreeSet::new(),
            inbox: inbox.clone(),
            publish,
            published: Millis(0),
            changed: true,
        };
        let thread = std::thread::Builder::new().name("sync".into()).spawn(move || {
            runtime.block_on(state.run(network.events, inputs));
        })?;
        Ok(Self { inbox, snapshot, thread: Some(thread) })
    }

    /// How things stand, a few milliseconds ago.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    /// The same, for waiting until it changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    /// Asks all peers now what they have.
    pub fn reconcile(&self) {
        drop(self.inbox.send(Inbox::Reconcile));
    }

    /// Stops, once the batch at hand in each store is included. Blocks for as long.
    pub fn stop(mut self) {
        drop(self.inbox.send(Inbox::Stop));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(target: "sync", "the sync thread ended early");
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.inbox.send(Inbox::Stop));
    }
}

/// Wall-clock time that goes on evenly: it follows the wall clock only over a gap, when the machine has slept.
struct Time {
    clock: Arc<dyn Clock>,
    base: Millis,
    since: Instant,
}

impl Time {
    fn new(clock: Arc<dyn Clock>) -> Self {
        Self { base: clock.now(), clock, since: monotonic() }
    }

    fn now(&self) -> Millis {
        self.base.after(self.since.elapsed())
    }

    /// Whether the machine has slept since the last time this was asked.
    fn slept(&mut self) -> bool {
        let wall = self.clock.now();
        let slept = wall.since(self.now()) > SLEPT;
        if slept {
            (self.base, self.since) = (wall, monotonic());
        }
        slept
    }

    fn until(&self, at: Millis) -> Duration {
        // A timer that fires in the millisecond before its time would only fire again.
        at.since(self.now()) + Duration::from_millis(1)
    }
}

enum Job {
    Batch(Batch),
    Retry,
}

struct Worker {
    log: Arc<Log>,
    jobs: blocking::Sender<Job>,
    thread: JoinHandle<()>,
}

impl Worker {
    fn start(log: Arc<Log>, inbox: mpsc::UnboundedSender<Inbox>) -> std::io::Result<Self> {
        let (jobs, queue) = blocking::channel();
        let worked = Arc::clone(&log);
        let thread = std::thread::Builder::new().name("ingest".into()).spawn(move || {
            let mut ingest = Ingest::new();
            while let Ok(job) = queue.recv() {
                let (peer, pull) = match &job {
                    Job::Batch(batch) => (Some(batch.peer), batch.pull),
                    Job::Retry => (None, None),
                };
                let work = std::panic::AssertUnwindSafe(|| match job {
                    Job::Batch(batch) => ingest.take(&worked, batch),
                    Job::Retry => ingest.retry(&worked),
                });
                let report = std::panic::catch_unwind(work).unwrap_or_else(|_panic| {
                    tracing::error!(target: "sync", store = %worked.store(), "taking entries failed in a way it never should");
                    ingest = Ingest::new();
                    Report::failed(worked.store(), peer, pull)
                });
                if inbox.send(Inbox::Ingested(report)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { log, jobs, thread })
    }
}

struct Loop {
    replica: Replica,
    time: Time,
    host: Arc<dyn Host>,
    commands: mpsc::Sender<Command>,
    pending: VecDeque<Command>,
    workers: BTreeMap<StoreId, Worker>,
    /// The topics that this node takes part in.
    topics: BTreeMap<StoreId, [u8; 32]>,
    /// Stores whose topic could not be told yet.
    unsubscribed: BTreeSet<StoreId>,
    inbox: mpsc::UnboundedSender<Inbox>,
    publish: watch::Sender<Arc<Snapshot>>,
    published: Millis,
    /// Whether something happened since.
    changed: bool,
}

impl Loop {
    async fn run(mut self, mut events: mpsc::Receiver<Event>, mut inputs: mpsc::UnboundedReceiver<Inbox>) {
        let mut changed = self.host.changed();
        changed.mark_changed();
        let commands = self.commands.clone();
        loop {
            self.settle();
            let wait = self.wait();
            tokio::select! {
                permit = commands.reserve(), if !self.pending.is_empty() => match (permit, self.pending.pop_front()) {
                    (Ok(permit), Some(command)) => permit.send(command),
                    _ => break,
                },
                input = inputs.recv() => match input {
                    Some(Inbox::Durable(durable)) => self.handle(Input::Durable(durable)),
                    Some(Inbox::Ingested(report)) => self.ingested(report),
                    Some(Inbox::Reconcile) => self.handle(Input::Missed),
                    Some(Inbox::Stop) | None => break,
                },
                event = events.recv() => match event {
                    Some(event) => self.event(event),
                    None => break,
                },
                stores = changed.changed() => match stores {
                    Ok(()) => self.handle(Input::Stores),
                    Err(_) => break,
                },
                () = tokio::time::sleep(wait) => self.tick(),
            }
            if self.time.slept() {
                self.handle(Input::Woke);
            }
        }
        drop(inputs);
        self.end();
    }

    fn end(self) {
        drop(self.publish);
        let workers: Vec<_> = self.workers.into_values().collect();
        let (queues, threads): (Vec<_>, Vec<_>) = workers.into_iter().map(|w| (w.jobs, w.thread)).unzip();
        drop(queues);
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!(target: "sync", "an ingest thread ended early");
            }
        }
    }

    /// Gives the network what fits its channel.
    fn settle(&mut self) {
        while let Some(command) = self.pending.pop_front() {
            match self.commands.try_send(command) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(command) | mpsc::error::TrySendError::Closed(command)) => {
                    self.pending.push_front(command);
                    return;
                }
            }
        }
    }

    /// Publishes how things stand if that is due, and says when the loop must turn again.
    fn wait(&mut self) -> Duration {
        let now = self.time.now();
        let due = self.published.after(PUBLISH);
        if self.changed && due <= now {
            (self.published, self.changed) = (now, false);
            let snapshot = self.replica.snapshot(&LogShelf(&*self.host));
            self.publish.send_if_modified(|published| {
                let modified = **published != snapshot;
                if modified {
                    *published = Arc::new(snapshot);
                }
                modified
            });
        }
        let wake = self.replica.wake_at();
        self.time.until(if self.changed { wake.min(due) } else { wake })
    }

    fn tick(&mut self) {
        let changed = self.changed || self.replica.wake_at() <= self.time.now();
        self.handle(Input::Tick);
        self.changed = changed;
    }

    fn event(&mut self, event: Event) {
        let input = match event {
            Event::Connected { peer, address } => Input::Connected { peer, address },
            Event::Lost { peer, reason } => {
                tracing::info!(target: "sync", peer = %peer.short(), reason, "a link is down");
                Input::Lost { peer }
            }
            Event::Received { peer, frame } => Input::Received { peer, frame },
            Event::Gossip { store, from, message } => Input::Gossip { store, from, message },
            Event::Neighbour { store: _, peer } => Input::Neighbour { peer },
            Event::Lagged { store: _ } => Input::Missed,
        };
        self.handle(input);
    }

    fn ingested(&mut self, report: Report) {
        self.handle(Input::Ingested(report));
        if !self.unsubscribed.is_empty() {
            for store in std::mem::take(&mut self.unsubscribed) {
                self.subscribe(store);
            }
        }
    }

    fn handle(&mut self, input: Input) {
        self.changed = true;
        let outputs = self.replica.handle(input, self.time.now(), &LogShelf(&*self.host));
        for output in outputs {
            self.perform(output);
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Send { peer, frame } => self.pending.push_back(Command::Send { peer, frame }),
            Output::Close { peer, why } => {
                let (code, reason) = (why.code(), why.reason().to_owned());
                tracing::info!(target: "sync", peer = %peer.short(), reason, "ending a link");
                self.pending.push_back(Command::Close { peer, code, reason });
            }
            Output::Subscribe(store) => self.subscribe(store),
            Output::Unsubscribe(store) => {
                self.unsubscribed.remove(&store);
                self.topics.remove(&store);
                self.workers.remove(&store);
                self.pending.push_back(Command::Unsubscribe { store });
            }
            Output::Broadcast { store, message } => {
                if self.pending.len() < PENDING {
                    self.pending.push_back(Command::Broadcast { store, message });
                }
            }
            Output::Ingest(batch) => {
                let (store, peer, pull) = (batch.store, batch.peer, batch.pull);
                if !self.job(&store, Job::Batch(batch)) {
                    self.fail(Report::failed(store, Some(peer), pull));
                }
            }
            Output::Retry(store) => {
                self.follow_salt();
                self.job(&store, Job::Retry);
            }
            Output::Own { store, behind } => {
                let Some(log) = self.host.log(&store) else { return };
                if let Err(error) = if behind { log.behind() } else { log.abreast() } {
                    tracing::error!(target: "sync", %error, "what this node wrote before can't be noted");
                }
            }
        }
    }

    /// Answers for an ingest that can't be done; by the inbox, since the replica is at work.
    fn fail(&self, report: Report) {
        drop(self.inbox.send(Inbox::Ingested(report)));
    }

    /// Moves to the topics of a new salt: that of a mesh changes when a member is removed.
    fn follow_salt(&mut self) {
        let moved =
            self.topics.iter().filter(|(store, topic)| self.host.topic(store).is_some_and(|now| now != **topic));
        let moved: Vec<_> = moved.map(|(store, _)| *store).collect();
        for store in moved {
            self.pending.push_back(Command::Unsubscribe { store });
            self.subscribe(store);
        }
    }

    fn subscribe(&mut self, store: StoreId) {
        match self.host.topic(&store) {
            Some(topic) => {
                self.topics.insert(store, topic);
                self.pending.push_back(Command::Subscribe { store, topic });
            }
            None => drop(self.unsubscribed.insert(store)),
        }
    }

    /// Gives work to the store's thread, which is started if need be. False if the store is not open.
    fn job(&mut self, store: &StoreId, job: Job) -> bool {
        let Some(log) = self.host.log(store) else { return false };
        if self.workers.get(store).is_none_or(|worker| !Arc::ptr_eq(&worker.log, &log)) {
            match Worker::start(log, self.inbox.clone()) {
                Ok(worker) => drop(self.workers.insert(*store, worker)),
                Err(error) => {
                    tracing::error!(target: "sync", %error, "no thread for a store's entries");
                    return false;
                }
            }
        }
        self.workers.get(store).is_some_and(|worker| worker.jobs.send(job).is_ok())
    }
}

/// A peer's id for [`Identity::seed`]: spreads the timers of nodes that start together.
#[must_use]
pub fn seed(me: &NodeId, now: Millis) -> u64 {
    me.0.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)) ^ now.0
}
