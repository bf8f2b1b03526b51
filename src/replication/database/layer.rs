//! Writes in memory, as layers that readers share.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Table;
use super::rows::{Range, Rows, Sorted};

/// A layer up to this size, in bytes, is copied when it must grow while a view holds it; a larger one is left alone.
const MERGED: usize = 512 * 1024;
/// What a row takes in memory besides its bytes, about.
const ROW: usize = 64;

/// A value whose bytes are made when they are first asked for, by whoever asks: at the latest for the commit.
pub trait Late: Send + Sync {
    /// The bytes, always the same.
    fn bytes(&self) -> &[u8];

    /// How many there are, without making them.
    fn size(&self) -> usize;
}

/// A row's value.
#[derive(Clone)]
pub(super) enum Value {
    Bytes(Vec<u8>),
    Late(Arc<dyn Late>),
}

impl Value {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Late(late) => late.bytes(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Late(late) => late.size(),
        }
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

pub(super) type Tree = BTreeMap<Vec<u8>, Option<Value>>;

/// Writes in memory: per table, key to value, `None` where the key is removed.
#[derive(Debug, Default, Clone)]
pub struct Layer {
    /// Few: found by looking at each.
    tables: Vec<(Table, Tree)>,
    bytes: usize,
}

impl Layer {
    pub(super) fn put(&mut self, table: Table, key: Vec<u8>, value: Option<impl Into<Value>>) {
        let value = value.map(Into::into);
        let rows = match self.tables.iter().position(|(known, _)| *known == table) {
            Some(place) => &mut self.tables[place].1,
            None => {
                self.tables.push((table, Tree::new()));
                let last = self.tables.len() - 1;
                &mut self.tables[last].1
            }
        };
        self.bytes += insert(rows, key, value);
    }

    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<Option<&[u8]>> {
        self.tree(table)?.get(key).map(|value| value.as_ref().map(Value::bytes))
    }

    fn tree(&self, table: Table) -> Option<&Tree> {
        self.tables.iter().find(|(known, _)| *known == table).map(|(_, rows)| rows)
    }

    fn absorb(&mut self, other: Self) {
        if self.tables.is_empty() {
            *self = other;
            return;
        }
        for (table, rows) in other.tables {
            for (key, value) in rows {
                self.put(table, key, value);
            }
        }
    }
}

impl Sorted for Layer {
    fn tables(&self) -> Vec<Table> {
        self.tables.iter().map(|(table, _)| *table).collect()
    }

    fn rows(&self, table: Table, range: Range<'_>) -> Option<Rows<'_>> {
        Some(Rows::Tree(self.tree(table)?.range::<[u8], _>(range)))
    }
}

fn cost(key: usize, value: Option<&Value>) -> usize {
    key + value.map_or(0, Value::len) + ROW
}

/// Sets a row; gives the bytes that the rows have grown by.
fn insert(rows: &mut Tree, key: Vec<u8>, value: Option<Value>) -> usize {
    let len = key.len();
    let now = cost(len, value.as_ref());
    match rows.insert(key, value) {
        // Shrinking is not worth a signed sum.
        Some(before) => now.saturating_sub(cost(len, before.as_ref())),
        None => now,
    }
}

fn owned(layer: Arc<Layer>) -> Layer {
    Arc::try_unwrap(layer).unwrap_or_else(|shared| Layer::clone(&shared))
}

/// Layers, the oldest first. A clone is a picture of this moment: what is pushed later does not change it.
///
/// Invariant: a layer that a clone holds is never changed. Of the layers up to [`MERGED`], each is more than twice
/// the size of the next, so there are few of them.
#[derive(Debug, Default, Clone)]
pub(super) struct Stack(Vec<Arc<Layer>>);

impl Stack {
    /// Puts `layer` on top: if it is small, into the topmost layer, if nobody looks at that one.
    pub(super) fn push(&mut self, layer: Layer) {
        match self.0.last_mut().and_then(Arc::get_mut).filter(|_| layer.bytes <= MERGED) {
            Some(top) => top.absorb(layer),
            None => self.0.push(Arc::new(layer)),
        }
        while let [.., below, top] = self.0.as_slice()
            && below.bytes <= MERGED
            && below.bytes <= top.bytes.saturating_mul(2)
            && let Some(top) = self.0.pop()
            && let Some(below) = self.0.pop()
        {
            let mut merged = owned(below);
            merged.absorb(owned(top));
            self.0.push(Arc::new(merged));
        }
    }

    /// Puts all of `other` on top.
    pub(super) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Layer> {
        self.0.iter().rev().map(|layer| &**layer)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|layer| layer.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn layer(key: u32) -> Layer {
        let mut layer = Layer::default();
        layer.put("t", key.to_be_bytes().to_vec(), Some(vec![0; 100]));
        layer
    }

    fn count(stack: &Stack) -> usize {
        stack.newest_first().map(|layer| layer.tree("t").map_or(0, Tree::len)).sum()
    }

    #[test]
    fn a_clone_keeps_its_picture_and_layers_stay_few_though_each_is_held() {
        let mut stack = Stack::default();
        let mut held = VecDeque::new();
        for key in 0..20_000 {
            stack.push(layer(key));
            held.push_back((key as usize + 1, stack.clone()));
            assert!(stack.0.len() < 24, "{} layers", stack.0.len());
            if held.len() > 50 {
                let (rows, old) = held.pop_front().unwrap();
                assert_eq!(count(&old), rows);
            }
        }
    }

    #[test]
    fn without_readers_there_is_one_layer() {
        let mut stack = Stack::default();
        for key in 0..1_000 {
            stack.push(layer(key));
        }
        assert_eq!(stack.0.len(), 1);
    }
}
