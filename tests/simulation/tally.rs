//! What was sent: how many messages of each kind, and their bytes.

use std::collections::BTreeMap;

use bytes::Bytes;

/// What a message is for. On a link in the order of the protocol, then in gossip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Hello,
    Status,
    Tips,
    Pull,
    Entries,
    Credit,
    Compare,
    Probe,
    /// Whole entries, from neighbour to neighbour.
    Push,
    /// What can be pulled, from neighbour to neighbour.
    Announce,
    /// That a neighbour has a message.
    Have,
    /// That a neighbour is to send messages whole, or no more.
    Tree,
    /// Who is whose neighbour.
    Neighbours,
}

impl Kind {
    /// Of a frame on a link: a message's number is its first byte.
    pub(crate) fn of_frame(frame: &Bytes) -> Self {
        match frame[0] {
            0 => Self::Hello,
            1 => Self::Status,
            2 => Self::Tips,
            3 => Self::Pull,
            4 => Self::Entries,
            5 => Self::Credit,
            6..=8 => Self::Compare,
            9 | 10 => Self::Probe,
            other => panic!("a frame of an unknown kind, {other}"),
        }
    }

    /// Of a message between neighbours in gossip, as it is on the wire.
    pub(crate) fn of_swarm(message: &[u8]) -> Self {
        match message[..2] {
            [0, _] => Self::Neighbours,
            [1, 0] => {
                // Its id, then the length of what is pushed, of which the first byte is the number of its form.
                let length = message[34..].iter().take_while(|byte| **byte >= 0x80).count() + 1;
                if message[34 + length] == 0 { Self::Push } else { Self::Announce }
            }
            [1, 1 | 2] => Self::Tree,
            [1, 3] => Self::Have,
            _ => panic!("a gossip message of an unknown kind"),
        }
    }
}

/// Messages and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// How much of each kind was sent in all, and how much by each node.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    pub(crate) kinds: BTreeMap<Kind, Count>,
    pub(crate) nodes: Vec<Count>,
}

impl Tally {
    /// Of so many nodes.
    pub(crate) fn of(nodes: usize) -> Self {
        Self { kinds: BTreeMap::new(), nodes: vec![Count::default(); nodes] }
    }

    pub(crate) fn add(&mut self, by: usize, kind: Kind, bytes: usize) {
        for count in [self.kinds.entry(kind).or_default(), &mut self.nodes[by]] {
            count.messages += 1;
            count.bytes += bytes as u64;
        }
    }

    /// What came since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let less =
            |now: &Count, then: Count| Count { messages: now.messages - then.messages, bytes: now.bytes - then.bytes };
        let kinds = self.kinds.iter().map(|(kind, count)| {
            let then = earlier.kinds.get(kind).copied().unwrap_or_default();
            (*kind, less(count, then))
        });
        let nodes = self.nodes.iter().zip(&earlier.nodes).map(|(now, then)| less(now, *then));
        Self { kinds: kinds.collect(), nodes: nodes.collect() }
    }

    /// All kinds together.
    pub(crate) fn total(&self) -> Count {
        self.kinds.values().fold(Count::default(), |sum, count| Count {
            messages: sum.messages + count.messages,
            bytes: sum.bytes + count.bytes,
        })
    }

    /// The most bytes that one node sent.
    pub(crate) fn most(&self) -> u64 {
        self.nodes.iter().map(|count| count.bytes).max().unwrap_or(0)
    }
}
