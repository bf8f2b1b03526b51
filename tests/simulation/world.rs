//! The world of the simulation: time, links, gossip, and what goes wrong. All of it follows from the seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lattice::clock::{Millis, monotonic};
use lattice::ids::{Hash, NodeId, StoreId};
use lattice::replication::ingest::Batch;
use lattice::replication::log::Origin;
use lattice::replication::membership::Membership;
use lattice::replication::replica::{Input, Output};
use lattice::replication::shelf::{LogShelf, Logs};
use lattice::stores::kv::{Kind, Op, Value};
use lattice::stores::{Kv, Merge};

use crate::crowd::Guest;
use crate::links::rings;
use crate::node::{HOME, Node, member, stencil};
use crate::plan::{Dice, Plan};
use crate::swarm::SwarmInput;
use crate::tally::{Kind as Sent, Tally};

pub(crate) const START: Millis = Millis(1_700_000_000_000);
pub(crate) const PATHS: u64 = 12;

#[derive(Debug)]
pub(crate) enum Job {
    Batch(Batch),
    Retry,
}

#[derive(Debug)]
pub(crate) enum Happening {
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
    /// Something comes to a node's part in a store's gossip.
    Swarm(usize, u64, StoreId, SwarmInput),
    Visit(usize),
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) dice: Dice,
    pub(crate) now: Millis,
    pub(crate) nodes: Vec<Node>,
    pub(crate) queue: BinaryHeap<Reverse<(Millis, u64)>>,
    pub(crate) happenings: BTreeMap<u64, Happening>,
    pub(crate) next: u64,
    pub(crate) session: u64,
    /// When the last frame on its way from one node to another arrives: frames don't overtake each other.
    pub(crate) arrivals: BTreeMap<(usize, usize), Millis>,
    /// The frames on their way from one node to another, in order, with their session.
    pub(crate) lines: BTreeMap<(usize, usize), VecDeque<(u64, Bytes)>>,
    /// How many of them met a partition: within a session they are sent again until they arrive.
    pub(crate) held: BTreeMap<(usize, usize), u64>,
    /// Which side of the partition each node is on.
    pub(crate) sides: Vec<u64>,
    pub(crate) cuts: BTreeSet<(usize, usize)>,
    /// Nodes that came back with an older disk.
    pub(crate) restored: BTreeSet<usize>,
    /// Every entry that ever left a node or became durable.
    pub(crate) signed: BTreeMap<(StoreId, NodeId, u64), Hash>,
    /// Entries' bytes on their way from one node to another for each store, for which no credit came back.
    pub(crate) in_flight: BTreeMap<(usize, usize, StoreId, u64), u64>,
    pub(crate) calm: bool,
    pub(crate) trace: blake3::Hasher,
    pub(crate) index: BTreeMap<NodeId, usize>,
    /// Who is known from the beginning.
    pub(crate) known: Arc<Membership>,
    /// With whom each node is to be linked, if not with everybody.
    pub(crate) neighbours: Vec<BTreeSet<usize>>,
    /// Pairs that are to be linked, and are not.
    pub(crate) apart: BTreeSet<(usize, usize)>,
    pub(crate) guests: Vec<Guest>,
    /// What was sent.
    pub(crate) tally: Tally,
    /// Entries that are not everywhere yet: when they were made, and at how many nodes they are.
    pub(crate) journeys: BTreeMap<Hash, (Millis, usize)>,
    /// How long those took that are, in milliseconds.
    pub(crate) arrived: Vec<u64>,
    /// What makes the payloads of guests' entries.
    pub(crate) stencil: Kv,
    /// When the last gossip message from one node to another arrives.
    pub(crate) passes: BTreeMap<(usize, usize), u64>,
    /// What gossip takes for the beginning of time.
    pub(crate) epoch: Instant,
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan) -> Self {
        let mut dice = Dice(seed);
        let nodes: Vec<_> = (0..plan.nodes)
            .map(|n| {
                let skew = i64::try_from(dice.below(2 * plan.skew + 1)).unwrap() - i64::try_from(plan.skew).unwrap();
                let leap = if n == 1 { i64::try_from(plan.leap).unwrap() } else { 0 };
                Node::new(n, skew + leap)
            })
            .collect();
        let guests = Guest::all(&plan);
        let early = if plan.swarm { nodes.len() } else { 1 };
        let known = nodes.iter().take(early).map(|node| node.id).chain(guests.iter().map(|guest| guest.id));
        let known = Membership { members: known.map(|id| (id, member(&id))).collect() };
        let mut world = Self {
            index: nodes.iter().enumerate().map(|(n, node)| (node.id, n)).collect(),
            known: Arc::new(known),
            neighbours: rings(&nodes, plan.rings),
            apart: BTreeSet::new(),
            guests,
            tally: Tally::of(plan.nodes),
            journeys: BTreeMap::new(),
            arrived: Vec::new(),
            stencil: stencil(),
            passes: BTreeMap::new(),
            epoch: monotonic(),
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
            world.part(n);
        }
        world.at(0, Happening::Dial);
        let late = if world.plan.swarm { 0 } else { world.nodes.len() };
        for n in 1..late {
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

    pub(crate) fn at(&mut self, delay: u64, happening: Happening) {
        self.next += 1;
        self.queue.push(Reverse((Millis(self.now.0 + delay), self.next)));
        self.happenings.insert(self.next, happening);
    }

    pub(crate) fn start(&mut self, n: usize) {
        let seed = self.dice.roll();
        self.nodes[n].set_clock(self.now);
        self.nodes[n].start(&self.known, seed);
        self.handle(n, Input::Stores);
    }

    pub(crate) fn reachable(&self, a: usize, b: usize) -> bool {
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
        let Plan { span, nodes, writes, crashes, partitions, breaks, guests, .. } = self.plan;
        for guest in 0..guests {
            let at = self.dice.below(span);
            self.at(at, Happening::Visit(guest));
        }
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

    pub(crate) fn run_until(&mut self, end: Millis) {
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
            Happening::Swarm(n, life, store, input) => {
                if self.alive(n, life) {
                    self.swarm(n, store, input);
                }
            }
            Happening::Visit(guest) => self.visit(guest),
            Happening::Gossip { store, from, to, message } => {
                if self.nodes[to].up.is_some() && self.reachable(from, to) {
                    let from = self.nodes[from].id;
                    self.handle(to, Input::Gossip { store, from, message });
                }
            }
            Happening::Lost { node, peer, session } => self.lose(node, peer, session),
            Happening::Dial => self.dial(),
            Happening::Crash(n) => self.crash(n),
            Happening::Restart(n) => {
                if self.nodes[n].up.is_none() {
                    self.start(n);
                }
            }
            Happening::Partition(sides) => {
                if !self.calm {
                    self.sides = (0..self.nodes.len() as u64).map(|n| Dice(sides ^ n).below(2)).collect();
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

    pub(crate) fn alive(&self, n: usize, life: u64) -> bool {
        self.nodes[n].life == life && self.nodes[n].up.is_some()
    }

    fn crash(&mut self, n: usize) {
        if self.calm || self.nodes[n].up.is_none() {
            return;
        }
        let sessions = self.nodes[n].up.as_ref().unwrap().sessions.clone();
        self.nodes[n].crash();
        self.part(n);
        for (peer, session) in sessions {
            // Its peers notice some time later, or never before it is back.
            let after = self.dice.below(30_000);
            self.at(after, Happening::Lost { node: peer, peer: n, session });
        }
        let after = self.dice.below(10_000);
        self.at(after, Happening::Restart(n));
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

    pub(crate) fn put(&mut self, n: usize, path: &str, size: u64) {
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
        let receipt = kv.submit(vec![op], Origin::Mount(0)).unwrap();
        self.journeys.insert(receipt.hash, (self.now, 0));
        self.commit_soon(n);
    }

    pub(crate) fn commit_soon(&mut self, n: usize) {
        let (after, life) = (self.dice.below(self.plan.commit + 1), self.nodes[n].life);
        self.at(after, Happening::Commit(n, life));
    }

    pub(crate) fn commit(&mut self, n: usize, life: u64) {
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
                self.arrival(&entry.hash());
            }
            self.handle(n, Input::Durable(durable));
        }
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

    pub(crate) fn handle(&mut self, n: usize, input: Input) {
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
                let to = self.index[&peer];
                if self.plan.inspected {
                    self.inspect(n, to, &frame);
                }
                let Some(session) = self.nodes[n].up.as_ref().unwrap().sessions.get(&to).copied() else { return };
                self.tally.add(n, Sent::of_frame(&frame), 4 + frame.len());
                self.lines.entry((n, to)).or_default().push_back((session, frame));
                self.carry(n, to);
            }
            Output::Close { peer, why: _ } => {
                self.hang_up(n, self.index[&peer]);
            }
            Output::Subscribe(store) => self.subscribe(n, store),
            Output::Unsubscribe(_) => {}
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
    pub(crate) fn rejoin(&mut self) {
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
        if self.plan.inspected {
            self.inspect_push(n, store, &message);
        }
        if self.plan.swarm {
            return self.swarm(n, store, SwarmInput::Broadcast(message));
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
}
