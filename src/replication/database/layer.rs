//! Writes in memory, as layers that readers share.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::sync::Arc;

use super::Table;

/// A layer up to this size, in bytes, is copied when it must grow while a view holds it; a larger one is left alone.
const MERGED: usize = 512 * 1024;

pub(super) type Rows = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Writes in memory: per table, key to value, `None` where the key is removed.
#[derive(Debug, Default, Clone)]
pub struct Layer {
    tables: BTreeMap<Table, Rows>,
    bytes: usize,
}

impl Layer {
    pub(super) fn put(&mut self, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Vec::len) + 64;
        self.tables.entry(table).or_default().insert(key, value);
    }

    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.tables.get(table)?.get(key)
    }

    pub(super) fn rows(&self, table: Table) -> Option<&Rows> {
        self.tables.get(table)
    }

    fn absorb(&mut self, other: Self) {
        self.bytes += other.bytes;
        for (table, rows) in other.tables {
            match self.tables.entry(table) {
                btree_map::Entry::Vacant(place) => {
                    place.insert(rows);
                }
                btree_map::Entry::Occupied(mut place) => place.get_mut().extend(rows),
            }
        }
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
    /// Puts `layer` on top: into the topmost layer, if nobody looks at that one.
    pub(super) fn push(&mut self, layer: Layer) {
        match self.0.last_mut().and_then(Arc::get_mut) {
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

    pub(super) fn tables(&self) -> BTreeSet<Table> {
        self.0.iter().flat_map(|layer| layer.tables.keys().copied()).collect()
    }

    /// Calls `visit` for each row of `table`, in the keys' order, with what the newest layer says of it.
    pub(super) fn each<E>(
        &self,
        table: Table,
        mut visit: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut sources: Vec<&Rows> = self.0.iter().filter_map(|layer| layer.rows(table)).collect();
        if let [only] = sources.as_slice() {
            return only.iter().try_for_each(|(key, value)| visit(key, value.as_deref()));
        }
        let merged: BTreeMap<&[u8], Option<&[u8]>> =
            sources.drain(..).flatten().map(|(key, value)| (key.as_slice(), value.as_deref())).collect();
        merged.into_iter().try_for_each(|(key, value)| visit(key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(key: u32) -> Layer {
        let mut layer = Layer::default();
        layer.put("t", key.to_be_bytes().to_vec(), Some(vec![0; 100]));
        layer
    }

    #[test]
    fn a_clone_keeps_its_picture_and_layers_stay_few_though_each_is_held() {
        let mut stack = Stack::default();
        let mut held = Vec::new();
        for key in 0..20_000 {
            stack.push(layer(key));
            held.push((key, stack.clone()));
            assert!(stack.0.len() < 24, "{} layers", stack.0.len());
            if held.len() > 50 {
                let (last, old) = held.swap_remove(held.len() / 2);
                assert_eq!(
                    old.0.iter().map(|layer| layer.rows("t").map_or(0, BTreeMap::len)).sum::<usize>(),
                    last as usize + 1
                );
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
