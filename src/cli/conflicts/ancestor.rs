//! The version that the heads of a key come from.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::wire::{Head, Version, VersionsRequest};
use crate::api::{Client, Failure};

/// Names a write: its entry's hash, and the operation.
type Name = (Vec<u8>, u32);

/// The last of the versions that all heads stand on; `None` if there is none, or if it is a deletion.
pub(super) async fn ancestor(
    client: &Client,
    store: &str,
    path: &[u8],
    heads: &[Head],
) -> Result<Option<Head>, Failure> {
    let request = VersionsRequest { store: store.to_owned(), path: path.to_vec() };
    let mut stream = client.past().versions(request).await?.into_inner();
    let mut versions = Vec::new();
    while let Some(version) = stream.message().await? {
        versions.push(version);
    }
    Ok(nearest(&versions, heads).filter(|head| head.kind != "deleted"))
}

fn nearest(versions: &[Version], heads: &[Head]) -> Option<Head> {
    let name = |head: &Head| (head.hash.clone(), head.op);
    let places: BTreeMap<Name, usize> =
        versions.iter().zip(0..).filter_map(|(version, at)| Some((name(version.head.as_ref()?), at))).collect();
    let mut common: Option<BTreeSet<usize>> = None;
    for head in heads {
        let mut under = BTreeSet::new();
        let mut left: Vec<usize> = places.get(&name(head)).copied().into_iter().collect();
        while let Some(at) = left.pop() {
            if under.insert(at) {
                let names = versions[at].supersedes.iter().map(|name| (name.hash.clone(), name.op));
                left.extend(names.filter_map(|name| places.get(&name)));
            }
        }
        common = Some(common.map_or(under.clone(), |common| &common & &under));
    }
    // They come oldest first.
    common?.last().and_then(|at| versions[*at].head.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::HeadName;

    fn head(name: u8) -> Head {
        Head { hash: vec![name], ..Head::default() }
    }

    fn version(name: u8, supersedes: &[u8]) -> Version {
        let supersedes = supersedes.iter().map(|name| HeadName { hash: vec![*name], op: 0 }).collect();
        Version { head: Some(head(name)), supersedes }
    }

    #[test]
    fn the_nearest_ancestor_is_the_last_that_all_heads_stand_on() {
        let versions =
            [version(1, &[]), version(2, &[1]), version(3, &[2]), version(4, &[2]), version(5, &[3]), version(6, &[])];
        let of = |heads: &[u8]| {
            let heads: Vec<_> = heads.iter().map(|name| head(*name)).collect();
            nearest(&versions, &heads).map(|head| head.hash[0])
        };
        assert_eq!(of(&[4, 5]), Some(2));
        assert_eq!(of(&[1, 5]), Some(1));
        assert_eq!(of(&[4, 5, 6]), None);
        assert_eq!(of(&[5]), Some(5));
    }
}
