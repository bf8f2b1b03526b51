//! `lattice conflicts pick`: settling keys by one of their heads.

use std::ffi::OsString;

use clap::Args;
use serde_json::json;

use super::{left, named};
use crate::api::wire::{Head, HeadName, Key, PickRequest, Picked, StatusRequest};
use crate::cli::key::HOME;
use crate::cli::output::{escaped, hex, short};
use crate::cli::{Context, Ended};

const EXAMPLES: &str = "\
Examples:
  lattice conflicts pick mine notes/today
  lattice conflicts pick theirs 'photos/**'
  lattice conflicts pick 3fa9 notes/today      the head whose hash begins so
  lattice conflicts pick 1 notes               those that `lattice conflicts` lists as 1
  lattice conflicts pick 0                     of all keys what the mount shows

Each key becomes what that head made of it; the others stay in its history. What the choice does not fit is left as it is, and named.";

/// Settle keys by one of their heads
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Pick {
    /// mine (this machine's), theirs (the one of others), a head's number, or the start of its hash
    which: String,
    /// The keys: paths, directories, globs, or whole paths of files on the mount [default: all that need a person]
    keys: Vec<OsString>,
    /// The store
    #[arg(long, short, default_value = HOME, value_name = "NAME")]
    store: String,
}

/// The heads of a key as a word may choose them: number, start of the hash, author.
fn listed(heads: &[Head]) -> String {
    let one = |(number, head): (usize, &Head)| {
        format!("{number} ({}, {})", short(&head.hash), escaped(head.author_name.as_bytes()))
    };
    heads.iter().enumerate().map(one).collect::<Vec<_>>().join(", ")
}

/// The head that a word chooses, or why none.
fn chosen<'a>(which: &str, heads: &'a [Head], me: &[u8]) -> Result<&'a Head, String> {
    let one = |found: Vec<&'a Head>, none: &str, several: &str| match found.as_slice() {
        [] => Err(format!("{none}; its heads are {}", listed(heads))),
        [head] => Ok(*head),
        [..] => Err(format!("{several}; its heads are {}", listed(heads))),
    };
    let by = |mine: bool| heads.iter().filter(|head| (head.author == me) == mine).collect();
    match which {
        "mine" => one(by(true), "no head of it is this machine's", "several heads of it are this machine's"),
        "theirs" => one(by(false), "no head of it is another machine's", "several heads of it are other machines'"),
        _ => match which.parse::<usize>().ok().filter(|_| which.len() < 4) {
            Some(number) => one(heads.get(number).into_iter().collect(), "it has no head of that number", ""),
            None => {
                let (found, shown) =
                    (heads.iter().filter(|head| hex(&head.hash).starts_with(which)), escaped(which.as_bytes()));
                one(
                    found.collect(),
                    &format!("it has no head '{shown}'"),
                    &format!("several heads of it begin with '{shown}'"),
                )
            }
        },
    }
}

pub(super) fn names(heads: &[Head]) -> Vec<HeadName> {
    heads.iter().map(|head| HeadName { hash: head.hash.clone(), op: head.op }).collect()
}

impl Pick {
    pub(super) async fn run(mut self, context: &Context) -> Ended {
        let client = context.client().await?;
        let me = client.node().status(StatusRequest {}).await?.into_inner().node;
        let (mut picked, mut not) = (Vec::new(), Vec::new());
        for Key { path, heads, shadowed } in named(&client, &mut self.store, std::mem::take(&mut self.keys)).await? {
            let choice = chosen(&self.which, &heads, &me);
            let choice = if shadowed { Err("keys lie below it: delete them, or it".to_owned()) } else { choice };
            match choice {
                Ok(head) => picked.push(Picked { heads: names(&heads), head: Some(head.clone()), path }),
                Err(why) => not.push((path, why)),
            }
        }
        let paths: Vec<_> = picked.iter().map(|picked| picked.path.clone()).collect();
        if !picked.is_empty() {
            let request = PickRequest { store: self.store, keys: picked };
            let reply = client.kv().pick(request).await?.into_inner();
            let hashes: Vec<_> = reply.hashes.iter().map(|hash| hex(hash)).collect();
            let settled: Vec<_> = paths.iter().map(|path| escaped(path)).collect();
            let text = settled.iter().map(|path| format!("settled  {path}")).collect::<Vec<_>>().join("\n");
            context.output.either(&json!({"settled": settled, "entries": hashes}), text)?;
        }
        left(&not, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_chosen_by_whose_it_is_its_number_or_its_hash() {
        let head = |hash: u8, author: u8| Head { hash: vec![hash; 32], author: vec![author], ..Head::default() };
        let heads = [head(0xaa, 1), head(0xab, 2)];
        let choose = |which: &str| chosen(which, &heads, &[1]).map(|head| head.hash[0]).ok();
        assert_eq!((choose("mine"), choose("theirs")), (Some(0xaa), Some(0xab)));
        assert_eq!((choose("0"), choose("1"), choose("2")), (Some(0xaa), Some(0xab), None));
        assert_eq!((choose("abab"), choose("aaaa"), choose("a"), choose("ffff")), (Some(0xab), Some(0xaa), None, None));
        let three = [head(0xaa, 1), head(0xab, 2), head(0xac, 3)];
        assert!(chosen("theirs", &three, &[1]).is_err());
        assert!(chosen("mine", &three, &[4]).is_err());
    }
}
