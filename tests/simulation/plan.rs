//! What goes wrong in a history, and the dice that say when.

/// A small generator, the same on every machine.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.roll() % n.max(1)
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn pick(&mut self, n: usize) -> usize {
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
    /// Authors that have no node of their own here: each comes to a node once, hands over what it wrote, and leaves.
    pub(crate) guests: usize,
    /// Whether gossip is iroh's own, from neighbour to neighbour. Otherwise it takes one hop to everybody, and is lost and
    /// doubled as the plan says.
    pub(crate) swarm: bool,
    /// On so many rings of all nodes each is linked with the one before and the one behind it; 0: each with each.
    pub(crate) rings: u64,
    /// Whether all that is sent is looked into. That costs more than sending it.
    pub(crate) inspected: bool,
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
            ..Self::calm()
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
            guests: 0,
            swarm: false,
            rings: 0,
            inspected: true,
        }
    }

    /// A calm one of a size that real meshes have not reached: gossip as in iroh, and everybody known from the start.
    pub(crate) fn crowd(nodes: usize, guests: usize, rings: u64) -> Self {
        Self { nodes, guests, swarm: true, rings, delay: 40, commit: 5, inspected: false, ..Self::calm() }
    }
}
