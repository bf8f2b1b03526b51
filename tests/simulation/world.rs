//! The world of the simulation: time, links, gossip, and what goes wrong. All of it follows from the seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lattice::clock::Millis;
use lattice::ids::{Hash, NodeId, StoreId};
use lattice::replication::entry::Entry;
use lattice::replication::ingest::Batch;
use lattice::replication::limits;
use lattice::replication::log::Origin;
use lattice::replication::message::{Message, Push};
use lattice::replication::reconcile::Shelf;
use lattice::replication::replica::{Input, Output};
use lattice::replication::shelf::{LogShelf, Logs};
use lattice::stores::Merge;
use lattice::stores::kv::{Kind, Op, Value};

use crate::node::{HOME, MESH, Node};

const START: Millis = Millis(1_700_000_000_000);
const PATHS: u64 = 12;

/// A small generator, the same on every machine.
pub(crate) struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n.max(1)
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn pick(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap()
    }
}

/// What kind of world it is. Chances are in percent.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    /// Milliseconds of turmoil.
    pub(crate) span: u64,
    pub(crate) writes: u64,
    pub(crate) crashes: u64,
    pub(crate) partitions: u64,
    pub(crate) breaks: u64,
    pub(crate) gossip_lost: u64,
    pub(crate) gossip_doubled: u64,
    /// The longest delay of a frame or a gossip message, in milliseconds.
    pub(crate) delay: u64,
    /// The longest time from a write to its durable commit.
    pub(crate) commit: u64,
    /// How far each clock is wrong, at most, in milliseconds.
    pub(crate) skew: u64,
    /// How much one node's clock is ahead besides.
    pub(crate) leap: u64,
    /// Whether members become known late.
    pub(crate) late: bool,
}

impl Plan {
    pub(crate) fn random(seed: u64) -> Self {
        let mut dice = Dice(seed ^ 0x5eed);
        let often = |dice: &mut Dice, most: u64| if dice.percent(70) { dice.below(most + 1) } else { 0 };
        Self {
            nodes: 2 + dice.pick(7),
            span: 5_000 + dice.below(60_000),
            writes: 10 + dice.below(150),
            crashes: often(&mut dice, 5),
            partitions: often(&mut dice, 4),
            breaks: often(&mut dice, 10),
            gossip_lost: [0, 5, 30, 100][dice.pick(4)],
            gossip_doubled: often(&mut dice, 20),
            delay: [1, 10, 100, 1_000][dice.pick(4)],
            commit: [1, 20, 100, 2_000][dice.pick(4)],
            skew: [0, 1_000, 120_000][dice.pick(3)],
            leap: if dice.percent(10) { 400_000 } else { 0 },
            late: dice.percent(50),
        }
    }

    /// One in which nothing goes wrong.
    pub(crate) fn calm() -> Self {
        Self {
            nodes: 2,
            span: 0,
            writes: 0,
            crashes: 0,
            partitions: 0,
            breaks: 0,
            gossip_lost: 0,
            gossip_doubled: 0,
            delay: 1,
            commit: 2,
            skew: 0,
            leap: 0,
            late: false,
        }
    }
}

#[derive(Debug)]
enum Job {
    Batch(Batch),
    Retry,
}

#[derive(Debug)]
enum Happening {
    Write(usize),
    Commit(usize, u64),
    Tick(usize, u64),
    Ingest(usize, u64, StoreId, Job),
    /// The first frame on the line from one node to another arrives.
    Frame {
        from: usize,
        to: usize,
    },
    Gossip {
        store: StoreId,
        from: usize,
        to: usize,
        message: Bytes,
    },
    Lost {
        node: usize,
        peer: usize,
        session: u64,
    },
    Dial,
    Crash(usize),
    Restart(usize),
    Partition(u64),
    Rejoin,
    Break(usize, usize),
    Admit(usize),
}

pub(crate) struct World {
    plan: Plan,
    dice: Dice,
    now: Millis,
    nodes: Vec<Node>,
    queue: BinaryHeap<Reverse<(Millis, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    next: u64,
    session: u64,
    /// When the last frame on its way from one node to another arrives: frames don't overtake each other.
    arrivals: BTreeMap<(usize, usize), Millis>,
    /// The frames on their way from one node to another, in order, with their session.
    lines: BTreeMap<(usize, usize), VecDeque<(u64, Bytes)>>,
    /// How many of them met a partition: within a session they are sent again until they arrive.
    held: BTreeMap<(usize, usize), u64>,
    /// Which side of the partition each node is on.
    sides: Vec<u64>,
    cuts: BTreeSet<(usize, usize)>,
    /// Nodes that came back with an older disk.
    restored: BTreeSet<usize>,
    /// Every entry that ever left a node or became durable.
    signed: BTreeMap<(StoreId, NodeId, u64), Hash>,
    /// Entries' bytes on their way from one node to another for each store, for which no credit came back.
    in_flight: BTreeMap<(usize, usize, StoreId, u64), u64>,
    calm: bool,
    trace: blake3::Hasher,
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan) -> Self {
        let mut dice = Dice(seed);
        let nodes = (0..plan.nodes)
            .map(|n| {
                let skew = i64::try_from(dice.below(2 * plan.skew + 1)).unwrap() - i64::try_from(plan.skew).unwrap();
                let leap = if n == 1 { i64::try_from(plan.leap).unwrap() } else { 0 };
                Node::new(n, skew + leap)
            })
            .collect();
        let mut world = Self {
            sides: vec![0; plan.nodes],
            plan,
            dice,
            now: START,
            nodes,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            next: 0,
            session: 0,
            arrivals: BTreeMap::new(),
            lines: BTreeMap::new(),
            held: BTreeMap::new(),
            cuts: BTreeSet::new(),
            restored: BTreeSet::new(),
            signed: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            calm: false,
            trace: blake3::Hasher::new(),
        };
        for n in 0..world.nodes.len() {
            world.start(n);
        }
        world.at(0, Happening::Dial);
        for n in 1..world.nodes.len() {
            let late = if world.plan.late { world.dice.below(world.plan.span / 2) } else { 0 };
            world.at(late, Happening::Admit(n));
        }
        world
    }

    pub(crate) fn describe(&self) -> String {
        format!("{:?}", self.plan)
    }

    pub(crate) fn entries(&self) -> usize {
        self.signed.len()
    }

    /// A digest of all that happened.
    pub(crate) fn trace(&self) -> String {
        self.trace.finalize().to_hex().to_string()
    }

    fn at(&mut self, delay: u64, happening: Happening) {
        self.next += 1;
        self.queue.push(Reverse((Millis(self.now.0 + delay), self.next)));
        self.happenings.insert(self.next, happening);
    }

    fn start(&mut self, n: usize) {
        let founder = self.nodes[0].id;
        let seed = self.dice.roll();
        self.nodes[n].set_clock(self.now);
        self.nodes[n].start(founder, seed);
        self.handle(n, Input::Stores);
    }

    fn reachable(&self, a: usize, b: usize) -> bool {
        self.sides[a] == self.sides[b] && !self.cuts.contains(&(a.min(b), a.max(b)))
    }

    /// Ends the direct link of two nodes for good.
    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        self.cuts.insert((a.min(b), a.max(b)));
    }

    /// Many small writes at once.
    pub(crate) fn burst(&mut self, n: usize, count: u64) {
        self.settle();
        for i in 0..count {
            self.put(n, &format!("burst/{i}"), 64);
            if i % 100 == 99 {
                let life = self.nodes[n].life;
                self.at(i / 100, Happening::Commit(n, life));
            }
        }
    }

    /// Takes a backup of a node, lets it and the others go on, and puts the backup back. From its start on the node's programs
    /// write as often as they can; as a real one does, it lets them wait for a peer's word.
    pub(crate) fn restore_after(&mut self, n: usize, writes: u64) {
        let backup = self.nodes[n].backup();
        for _ in 0..writes {
            let (at, who) =
                (self.dice.below(5_000), if self.dice.percent(60) { n } else { self.dice.pick(self.nodes.len()) });
            self.at(at, Happening::Write(who));
        }
        self.run_until(Millis(self.now.0 + 15_000));
        self.crash(n);
        self.nodes[n].restore(backup);
        self.restored.insert(n);
        for at in 0..200 {
            self.at(at * 50, Happening::Write(n));
        }
        self.run_until(Millis(self.now.0 + 30_000));
        assert!(self.nodes[n].up.is_some(), "it is up again");
    }

    /// Lets all be done that is on its way.
    pub(crate) fn settle(&mut self) {
        self.run_until(Millis(self.now.0 + 3_000));
    }

    /// The time in which things go wrong.
    pub(crate) fn turmoil(&mut self) {
        let Plan { span, nodes, writes, crashes, partitions, breaks, .. } = self.plan;
        for _ in 0..writes {
            let (at, n) = (self.dice.below(span), self.dice.pick(nodes));
            self.at(at, Happening::Write(n));
        }
        for _ in 0..crashes {
            let (at, n) = (self.dice.below(span), self.dice.pick(nodes));
            self.at(at, Happening::Crash(n));
        }
        for _ in 0..partitions {
            let (at, sides) = (self.dice.below(span), self.dice.roll());
            self.at(at, Happening::Partition(sides));
            let after = at + self.dice.below(20_000);
            self.at(after, Happening::Rejoin);
        }
        for _ in 0..breaks {
            let (at, a, b) = (self.dice.below(span), self.dice.pick(nodes), self.dice.pick(nodes));
            self.at(at, Happening::Break(a, b));
        }
        self.run_until(Millis(self.now.0 + span));
    }

    /// Heals everything and waits until all are in step. Says how long that took.
    pub(crate) fn heal(&mut self) -> Duration {
        self.cuts.clear();
        self.heal_all_but((usize::MAX, usize::MAX))
    }

    pub(crate) fn heal_all_but(&mut self, cut: (usize, usize)) -> Duration {
        self.cuts.retain(|pair| *pair == cut);
        self.calm = true;
        self.rejoin();
        for n in 0..self.nodes.len() {
            if self.nodes[n].up.is_none() {
                self.start(n);
            }
            let life = self.nodes[n].life;
            self.at(0, Happening::Commit(n, life));
        }
        let healed = self.now;
        // What was written last is committed before anyone looks.
        self.run_until(healed);
        // An entry that is stamped ahead waits for its time; then each hop may take a round of reconciliation.
        let patience = 120_000 + self.plan.skew * 2 + self.plan.leap;
        while !self.in_step() {
            assert!(self.now.since(healed).as_millis() < u128::from(patience), "not in step:\n{}", self.differences());
            self.run_until(Millis(self.now.0 + 100));
        }
        self.now.since(healed)
    }

    fn prints(&self, n: usize) -> Vec<lattice::replication::log::Fingerprint> {
        let open = &self.nodes[n].up.as_ref().unwrap().open;
        let shelf = LogShelf(&**open);
        shelf.stores().iter().map(|store| shelf.fingerprint(store).unwrap()).collect()
    }

    fn in_step(&self) -> bool {
        let first = self.prints(0);
        let all = first.iter().map(|print| print.count).sum::<u64>();
        all == self.signed.len() as u64 && (1..self.nodes.len()).all(|n| self.prints(n) == first)
    }

    fn differences(&self) -> String {
        let mut lines = vec![format!("{} entries were signed", self.signed.len())];
        for (n, node) in self.nodes.iter().enumerate() {
            let up = node.up.as_ref().unwrap();
            let counts: Vec<_> = self.prints(n).iter().map(|print| print.count).collect();
            lines.push(format!(
                "node {n} ({}): {counts:?}, {:?}",
                node.id.short(),
                up.replica.snapshot(&LogShelf(&*up.open))
            ));
        }
        lines.join("\n")
    }

    /// All nodes have the same heads and, byte for byte, the same state; and so they do after a rebuild.
    pub(crate) fn check(&mut self) {
        let heads = |world: &Self, n: usize| {
            let kv = &world.nodes[n].up.as_ref().unwrap().kv;
            let heads = |i| kv.heads(format!("k/{i}").as_bytes()).unwrap().map(|heads| heads.all().to_vec());
            (0..PATHS).map(heads).collect::<Vec<_>>()
        };
        let digests = |world: &Self, n: usize| {
            let open = &world.nodes[n].up.as_ref().unwrap().open;
            open.logs().iter().map(|log| log.state_digest().unwrap()).collect::<Vec<_>>()
        };
        let (first, state) = (heads(self, 0), digests(self, 0));
        for n in 1..self.nodes.len() {
            assert_eq!(heads(self, n), first, "heads of node {n}");
            assert_eq!(digests(self, n), state, "state of node {n}");
        }
        let open = Arc::clone(&self.nodes[0].up.as_ref().unwrap().open);
        open.log(&HOME).unwrap().rebuild().unwrap();
        assert_eq!(digests(self, 0), state, "state after a rebuild");
    }

    fn run_until(&mut self, end: Millis) {
        while let Some(Reverse((at, id))) = self.queue.peek().copied().filter(|Reverse((at, _))| *at <= end) {
            self.queue.pop();
            self.now = at;
            let happening = self.happenings.remove(&id).unwrap();
            self.trace.update(&at.0.to_be_bytes()).update(format!("{happening:?}").as_bytes());
            self.happen(happening);
        }
        self.now = end;
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Write(n) => self.write(n),
            Happening::Commit(n, life) => self.commit(n, life),
            Happening::Tick(n, life) => {
                if self.alive(n, life) {
                    self.nodes[n].up.as_mut().unwrap().wakes = Millis(u64::MAX);
                    self.handle(n, Input::Tick);
                }
            }
            Happening::Ingest(n, life, store, job) => self.ingest(n, life, store, job),
            Happening::Frame { from, to } => self.arrive(from, to),
            Happening::Gossip { store, from, to, message } => {
                if self.nodes[to].up.is_some() && self.reachable(from, to) {
                    let from = self.nodes[from].id;
                    self.handle(to, Input::Gossip { store, from, message });
                }
            }
            Happening::Lost { node, peer, session } => {
                let Some(up) = &mut self.nodes[node].up else { return };
                if up.sessions.get(&peer) == Some(&session) {
                    up.sessions.remove(&peer);
                    let peer = self.nodes[peer].id;
                    self.handle(node, Input::Lost { peer });
                }
            }
            Happening::Dial => self.dial(),
            Happening::Crash(n) => self.crash(n),
            Happening::Restart(n) => {
                if self.nodes[n].up.is_none() {
                    self.start(n);
                }
            }
            Happening::Partition(sides) => {
                if !self.calm {
                    self.sides = (0..self.nodes.len()).map(|n| (sides >> n) & 1).collect();
                }
            }
            Happening::Rejoin => self.rejoin(),
            Happening::Break(a, b) => {
                if a != b && !self.calm {
                    self.hang_up(a, b);
                }
            }
            Happening::Admit(n) => {
                if self.nodes[0].up.is_none() {
                    return self.at(500, Happening::Admit(n));
                }
                self.nodes[0].set_clock(self.now);
                self.nodes[0].admit(&self.nodes[n].id);
                self.commit_soon(0);
            }
        }
    }

    fn alive(&self, n: usize, life: u64) -> bool {
        self.nodes[n].life == life && self.nodes[n].up.is_some()
    }

    fn crash(&mut self, n: usize) {
        if self.calm || self.nodes[n].up.is_none() {
            return;
        }
        let sessions = self.nodes[n].up.as_ref().unwrap().sessions.clone();
        self.nodes[n].crash();
        for (peer, session) in sessions {
            // Its peers notice some time later, or never before it is back.
            let after = self.dice.below(30_000);
            self.at(after, Happening::Lost { node: peer, peer: n, session });
        }
        let after = self.dice.below(10_000);
        self.at(after, Happening::Restart(n));
    }

    fn hang_up(&mut self, a: usize, b: usize) {
        for (node, peer) in [(a, b), (b, a)] {
            let session = self.nodes[node].up.as_ref().and_then(|up| up.sessions.get(&peer).copied());
            if let Some(session) = session {
                let after = self.dice.below(self.plan.delay + 1);
                self.at(after, Happening::Lost { node, peer, session });
            }
        }
    }

    /// Nodes that can reach each other and have no link make one.
    fn dial(&mut self) {
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                let (Some(one), Some(other)) = (&self.nodes[a].up, &self.nodes[b].up) else { continue };
                let linked = one.sessions.contains_key(&b) && one.sessions.get(&b) == other.sessions.get(&a);
                if linked || !self.reachable(a, b) || self.dice.percent(30) {
                    continue;
                }
                self.session += 1;
                for (node, peer) in [(a, b), (b, a)] {
                    self.nodes[node].up.as_mut().unwrap().sessions.insert(peer, self.session);
                    self.arrivals.insert((node, peer), self.now);
                }
                for (node, peer) in [(a, b), (b, a)] {
                    let peer = self.nodes[peer].id;
                    self.handle(node, Input::Connected { peer, address: None });
                    self.handle(node, Input::Neighbour { peer });
                }
            }
        }
        self.at(300, Happening::Dial);
    }

    fn write(&mut self, n: usize) {
        if self.nodes[n].up.is_none() {
            return;
        }
        let many = if self.dice.percent(3) { 150 } else { 1 + self.dice.below(3) };
        for _ in 0..many {
            let path = format!("k/{}", self.dice.below(PATHS));
            let size = if self.dice.percent(10) { 6_000 } else { self.dice.below(200) };
            self.put(n, &path, size);
        }
    }

    fn put(&mut self, n: usize, path: &str, size: u64) {
        self.nodes[n].set_clock(self.now);
        let kv = &self.nodes[n].up.as_ref().unwrap().kv;
        if !kv.log().membership().load().may_write(&self.nodes[n].id) {
            return;
        }
        let told = self.nodes[n].up.as_ref().unwrap().told.contains(&HOME);
        if kv.log().is_regaining() || (self.restored.contains(&n) && !told) {
            return;
        }
        let seen = kv.heads(path.as_bytes()).unwrap();
        let supersedes: Vec<_> = seen.iter().flat_map(|heads| heads.all().iter().map(|head| head.id)).collect();
        let path = path.as_bytes().to_vec();
        let op = if self.dice.percent(10) && !supersedes.is_empty() {
            Op::Delete { path, supersedes }
        } else {
            // A few values only, so that equal ones meet.
            let byte = u8::try_from(self.dice.below(4)).unwrap();
            let value = Value::Bytes(vec![byte; usize::try_from(size).unwrap()]);
            Op::Put { path, supersedes, kind: Kind::File, mode: 0o644, mtime: 0, value }
        };
        kv.submit(vec![op], Origin::Mount(0)).unwrap();
        self.commit_soon(n);
    }

    fn commit_soon(&mut self, n: usize) {
        let (after, life) = (self.dice.below(self.plan.commit + 1), self.nodes[n].life);
        self.at(after, Happening::Commit(n, life));
    }

    fn commit(&mut self, n: usize, life: u64) {
        if !self.alive(n, life) {
            return;
        }
        let up = self.nodes[n].up.as_ref().unwrap();
        for log in up.open.logs() {
            log.database().flush().unwrap();
        }
        let durable = std::mem::take(&mut *up.durable.lock().unwrap());
        for durable in durable {
            for (entry, _) in &durable.entries {
                self.witness(durable.store, entry);
            }
            self.handle(n, Input::Durable(durable));
        }
    }

    /// No two entries have one author and number: checked over all that ever became durable or left a node.
    fn witness(&mut self, store: StoreId, entry: &Entry) {
        let place = (store, entry.header().author, entry.header().seq);
        let known = *self.signed.entry(place).or_insert(entry.hash());
        assert_eq!(known, entry.hash(), "a fork at {place:?}");
    }

    fn ingest(&mut self, n: usize, life: u64, store: StoreId, job: Job) {
        if !self.alive(n, life) {
            return;
        }
        self.nodes[n].set_clock(self.now);
        let up = self.nodes[n].up.as_mut().unwrap();
        let log = up.open.log(&store).unwrap();
        let ingest = up.ingests.entry(store).or_default();
        let report = match job {
            Job::Batch(batch) => ingest.take(&log, batch),
            Job::Retry => ingest.retry(&log),
        };
        assert_eq!((report.faults, report.failed), (0, false), "honest nodes send nothing that is refused");
        self.handle(n, Input::Ingested(report));
        self.commit_soon(n);
    }

    fn handle(&mut self, n: usize, input: Input) {
        self.nodes[n].set_clock(self.now);
        let up = self.nodes[n].up.as_mut().unwrap();
        let open = Arc::clone(&up.open);
        let outputs = up.replica.handle(input, self.now, &LogShelf(&*open));
        for output in outputs {
            self.perform(n, output);
        }
        let life = self.nodes[n].life;
        let Some(up) = &mut self.nodes[n].up else { return };
        let wake = up.replica.wake_at().max(Millis(self.now.0 + 1));
        if wake < up.wakes {
            up.wakes = wake;
            self.at(wake.0 - self.now.0, Happening::Tick(n, life));
        }
    }

    fn perform(&mut self, n: usize, output: Output) {
        let life = self.nodes[n].life;
        match output {
            Output::Send { peer, frame } => {
                let to = self.nodes.iter().position(|node| node.id == peer).unwrap();
                self.inspect(n, to, &frame);
                let Some(session) = self.nodes[n].up.as_ref().unwrap().sessions.get(&to).copied() else { return };
                self.lines.entry((n, to)).or_default().push_back((session, frame));
                self.carry(n, to);
            }
            Output::Close { peer, why: _ } => {
                let to = self.nodes.iter().position(|node| node.id == peer).unwrap();
                self.hang_up(n, to);
            }
            Output::Subscribe(_) | Output::Unsubscribe(_) => {}
            Output::Broadcast { store, message } => self.broadcast(n, store, message),
            Output::Ingest(batch) => self.give(n, life, batch.store, Job::Batch(batch)),
            Output::Retry(store) => self.give(n, life, store, Job::Retry),
            Output::Own { store, behind } => {
                let up = self.nodes[n].up.as_mut().unwrap();
                up.told.insert(store);
                let log = up.open.log(&store).unwrap();
                if behind { log.behind() } else { log.abreast() }.unwrap();
            }
        }
    }

    fn carry(&mut self, from: usize, to: usize) {
        let soonest = Millis(self.now.0 + self.dice.below(self.plan.delay + 1));
        let arrival = self.arrivals.entry((from, to)).or_default();
        *arrival = (*arrival).max(soonest);
        let delay = arrival.0 - self.now.0;
        self.at(delay, Happening::Frame { from, to });
    }

    fn arrive(&mut self, from: usize, to: usize) {
        if !self.reachable(from, to) {
            *self.held.entry((from, to)).or_default() += 1;
            return;
        }
        let (session, frame) = self.lines.get_mut(&(from, to)).unwrap().pop_front().unwrap();
        let known = self.nodes[to].up.as_ref().and_then(|up| up.sessions.get(&from).copied());
        if known == Some(session) {
            let peer = self.nodes[from].id;
            self.trace.update(&frame);
            self.handle(to, Input::Received { peer, frame });
        }
    }

    /// Ends a partition: what met it goes on.
    fn rejoin(&mut self) {
        self.sides.fill(0);
        for ((from, to), count) in std::mem::take(&mut self.held) {
            (0..count).for_each(|_| self.carry(from, to));
        }
    }

    fn give(&mut self, n: usize, life: u64, store: StoreId, job: Job) {
        let done = self.now.0 + self.dice.below(10);
        let busy = self.nodes[n].up.as_mut().unwrap().busy.entry(store).or_default();
        *busy = Millis(busy.0.max(done));
        let delay = busy.0 - self.now.0;
        self.at(delay, Happening::Ingest(n, life, store, job));
    }

    fn broadcast(&mut self, n: usize, store: StoreId, message: Bytes) {
        assert!(message.len() <= limits::GOSSIP_MESSAGE);
        match Push::decode(&message).unwrap() {
            Push::Entries(packed) => packed.entries().iter().for_each(|bytes| self.durable(n, store, bytes)),
            Push::Tips { tips, .. } => {
                for (author, seq, hash) in tips {
                    self.claimed(n, store, author, seq, hash);
                }
            }
        }
        for to in (0..self.nodes.len()).filter(|to| *to != n) {
            let copies = 1 + u64::from(self.dice.percent(self.plan.gossip_doubled));
            for _ in 0..copies {
                let lost = !self.calm && self.dice.percent(self.plan.gossip_lost);
                let delay = self.dice.below(2 * self.plan.delay + 1);
                if !lost {
                    self.at(delay, Happening::Gossip { store, from: n, to, message: message.clone() });
                }
            }
        }
    }

    /// Nothing that is not durable leaves a node, and no more than a peer gave credit for.
    fn inspect(&mut self, n: usize, to: usize, frame: &Bytes) {
        assert!(frame.len() <= limits::FRAME);
        match Message::decode(frame).unwrap() {
            Message::Entries { store, id, packed, .. } => {
                packed.entries().iter().for_each(|bytes| self.durable(n, store, bytes));
                let size: usize = packed.entries().iter().map(Bytes::len).sum();
                let flying = self.in_flight.entry((n, to, store, id)).or_default();
                *flying += size as u64;
                assert!(*flying <= (limits::CREDIT + limits::FRAME_BYTES + limits::PAYLOAD) as u64);
            }
            Message::Credit { store, id, bytes } => {
                // In flight until the grant is on its way: it can't be spent earlier.
                let flying = self.in_flight.entry((to, n, store, id)).or_default();
                *flying = flying.saturating_sub(u64::from(bytes));
            }
            Message::Tips { store, tips, .. } => {
                for (author, tip) in tips {
                    self.claimed(n, store, author, tip.seq, tip.hash);
                }
            }
            Message::Status { stores, .. } => {
                let open = Arc::clone(&self.nodes[n].up.as_ref().unwrap().open);
                for (store, fingerprint) in stores {
                    assert_eq!(LogShelf(&*open).fingerprint(&store), Some(fingerprint));
                }
            }
            Message::Hello { mesh, .. } => assert_eq!(mesh, MESH),
            Message::Pull { .. }
            | Message::Compare { .. }
            | Message::Compared { .. }
            | Message::Have { .. }
            | Message::Ping(_)
            | Message::Pong(_) => {}
        }
    }

    fn durable(&mut self, n: usize, store: StoreId, bytes: &Bytes) {
        let entry = Entry::decode(bytes.clone()).unwrap();
        self.claimed(n, store, entry.header().author, entry.header().seq, entry.hash());
        self.witness(store, &entry);
    }

    fn claimed(&self, n: usize, store: StoreId, author: NodeId, seq: u64, hash: Hash) {
        let log = self.nodes[n].up.as_ref().unwrap().open.log(&store).unwrap();
        let found = log.at(&log.database().durable().unwrap(), &author, seq).unwrap();
        assert_eq!(found.map(|entry| entry.hash()), Some(hash), "node {n} told of what it may lose");
    }
}
