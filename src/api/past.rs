//! What was in stores of the kind `kv`, and going back to it.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use globset::GlobBuilder;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::failure::{Failure, Kind};
use super::host::Host;
use super::kv::{answer, described, ever, keys_of, send, shown};
use super::mesh;
use super::prove::HOME;
use super::stores::{Answers, blocking, one, registry, told};
use super::wire::{
    self, GetPart, HeadName, KeyThen, ProofPart, ProveRequest, ReadVersionRequest, RestoreReply, RestoreRequest,
    ShowReply, ShowRequest, ThenRequest, UndoReply, UndoRequest, Version, VersionsRequest, Write, moment::What,
    past_server::Past,
};
use crate::clock::{Hlc, Millis};
use crate::ids::Hash;
use crate::replication::entry::Entry;
use crate::replication::log::{Log, Origin};
use crate::stores::kv::{self, HeadId, KvError, Lens, Moment, Node, Op, Partly};
use crate::stores::root::names::ROOT;
use crate::stores::{Kv as Keys, Registry};

/// Keys read from a store at once.
const PAGE: usize = 1_000;

/// The shortest start of an entry's hash that is looked for.
const SHORTEST: usize = 4;

#[derive(Clone)]
pub(super) struct Service {
    pub(super) host: Arc<dyn Host>,
}

/// The entry whose hash begins so.
fn entry(log: &Log, start: &str) -> Result<Option<Entry>, Failure> {
    if start.len() < SHORTEST {
        let few = format!("'{start}' is too short for the start of an entry's hash");
        return Err(Failure::new(Kind::Usage, few).hint("give four digits or more; `lattice log` shows them"));
    }
    let view = log.database().view()?;
    let mut found = log.begin_with(&view, start, 2)?;
    if found.len() > 1 {
        return Err(Failure::refused(format!("several entries begin with '{start}'")).hint("give more of the hash"));
    }
    Ok(found.pop())
}

fn no_entry(start: &str) -> Failure {
    Failure::not_found(format!("there is no entry that begins with '{start}'"))
        .hint("`lattice log` lists a store's entries")
}

fn moment(keys: &Keys, moment: Option<wire::Moment>) -> Result<Moment, Failure> {
    let start = match moment.and_then(|moment| moment.what) {
        None => return Ok(Moment::now()),
        Some(What::Time(millis)) => return Ok(Moment::at(Millis(millis))),
        Some(What::Entry(start)) => start,
    };
    let (digits, before) = start.strip_suffix('^').map_or((start.as_str(), false), |digits| (digits, true));
    let hash = entry(keys.log(), digits)?.ok_or_else(|| no_entry(digits))?.hash();
    let found = if before { keys.moment_before(&hash)? } else { keys.moment_of(&hash)? };
    found.ok_or_else(|| no_entry(digits))
}

/// The entry whose hash begins so, and its store: this one, or if it is empty any.
pub(super) fn in_store(registry: &Registry, store: &str, start: &str) -> Result<(String, Arc<Log>, Entry), Failure> {
    let all = || registry.stores().into_iter().filter(|store| store.damaged.is_none()).map(|store| store.name);
    let names: Vec<String> =
        if store.is_empty() { all().chain([ROOT.to_owned()]).collect() } else { vec![store.to_owned()] };
    let mut found = None;
    for store in names {
        let log = one(registry, &store)?;
        if let Some(entry) = entry(&log, start)? {
            if found.is_some() {
                let several = format!("entries of several stores begin with '{start}'");
                return Err(Failure::refused(several).hint("give more of the hash, or name the store"));
            }
            found = Some((store, log, entry));
        }
    }
    found.ok_or_else(|| no_entry(start))
}

fn show(registry: &Registry, request: &ShowRequest) -> Result<ShowReply, Failure> {
    let (store, log, entry) = in_store(registry, &request.store, &request.entry)?;
    let noop = log.noop(&log.database().view()?, &entry.hash())?;
    let writes = match registry.kv_by_id(&log.store()) {
        Some(keys) => writes(&keys, &entry)?,
        None => Vec::new(),
    };
    Ok(ShowReply { store, kind: log.kind().to_owned(), entry: Some(told(registry, &log, &entry, noop)), writes })
}

fn writes(keys: &Keys, entry: &Entry) -> Result<Vec<Write>, Failure> {
    let mut found = Vec::new();
    for (path, version) in Keys::writes(entry) {
        let before = version.supersedes.iter().max();
        let before = before.map(|(hlc, id)| keys.version(&path, *hlc, id)).transpose()?.flatten();
        let before = before.filter(|version| version.head.is_live());
        found.push(Write {
            path,
            after: Some(described(keys.log(), &version.head)),
            before: before.map(|version| described(keys.log(), &version.head)),
        });
    }
    Ok(found)
}

fn then(keys: &Keys, request: ThenRequest, answers: &mpsc::Sender<Result<KeyThen, Status>>) -> Result<(), Failure> {
    let lens = Lens::At(moment(keys, request.moment)?);
    ever(keys, &request.path)?;
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = keys.scan_through(&lens, &request.path, after.as_deref(), PAGE)?;
        let last = page.len() < PAGE;
        after = page.last().map(|(path, _)| path.clone());
        for (path, head) in page {
            let head = Some(described(keys.log(), &head));
            if answers.blocking_send(Ok(KeyThen { path, head })).is_err() {
                return Ok(());
            }
        }
        if last {
            return Ok(());
        }
    }
}

fn read(keys: &Keys, request: &ReadVersionRequest, parts: &super::kv::Parts) -> Result<(), Failure> {
    let op = u16::try_from(request.op).ok();
    let id = Hash::from_slice(&request.hash).zip(op).map(|(entry, op)| HeadId { entry, op });
    let version = id.map(|id| keys.version(&request.path, Hlc(request.hlc), &id)).transpose()?.flatten();
    let version =
        version.ok_or_else(|| Failure::not_found(format!("'{}' has no such version", shown(&request.path))))?;
    send(keys.read(&version.head)?, parts)
}

/// Signs what was decided, unless it is only to be said. Of what fails half-way it tells what was made.
fn submit(keys: &Keys, store: &str, ops: Vec<Op>, dry: bool) -> Result<Vec<Vec<u8>>, Failure> {
    if dry {
        return Ok(Vec::new());
    }
    let made = keys.submit_all(ops, Origin::Local).map_err(|partly| halfway(store, partly))?;
    made.last().map_or(Ok(()), |last| keys.wait(last.staged))?;
    Ok(made.iter().map(|receipt| receipt.hash.0.to_vec()).collect())
}

fn halfway(store: &str, partly: Partly) -> Failure {
    let Partly { made, all, source } = partly;
    let failure = Failure::from(source);
    if made.is_empty() {
        return failure;
    }
    let hashes: Vec<_> = made.iter().map(|receipt| receipt.hash.short()).collect();
    let (few, hashes) = (made.len(), hashes.join(" "));
    let next =
        format!("`lattice undo {hashes} --store {store}` takes those back; the same command again does the rest");
    let hint = failure.hint.map_or_else(|| next.clone(), |hint| format!("{hint}; then {next}"));
    Failure::new(failure.kind, format!("{few} of {all} entries were made, and then: {}", failure.message)).hint(hint)
}

fn restore(keys: &Keys, request: RestoreRequest) -> Result<RestoreReply, Failure> {
    let RestoreRequest { store, path, moment: when, dry } = request;
    if !path.is_empty() {
        kv::check_path(&path).map_err(KvError::from)?;
    }
    let moment = moment(keys, when)?;
    ever(keys, &path)?;
    let was = keys.node_through(&Lens::At(moment.clone()), &path)?;
    if was.is_none() {
        return Err(Failure::not_found(format!("there was no '{}' at that moment", shown(&path)))
            .hint("`lattice log STORE PATH` lists what wrote to it"));
    }
    for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        if let Some(Node::File(_) | Node::Symlink(_)) = keys.node(&path[..end])? {
            let above = shown(&path[..end]);
            return Err(Failure::refused(format!("'{above}' is a key now, so nothing can stand below it"))
                .hint("delete it, or restore it, too"));
        }
    }
    let kv::Restored { ops, restored, deleted } = keys.restored(&path, &moment)?;
    let hashes = submit(keys, &store, ops, dry)?;
    Ok(RestoreReply { hashes, restored, deleted })
}

impl Service {
    fn undone(&self, keys: &Keys, request: &UndoRequest) -> Result<Vec<Entry>, Failure> {
        if !request.hashes.is_empty() {
            let one = |start: &String| entry(keys.log(), start)?.ok_or_else(|| no_entry(start));
            return request.hashes.iter().map(one).collect();
        }
        let author = mesh::Service { host: self.host.clone() }.member(&request.author)?.id;
        Ok(keys.written_since(&author, Hlc::at(Millis(request.since)))?)
    }

    fn take_back(&self, keys: &Keys, request: &UndoRequest) -> Result<UndoReply, Failure> {
        let glob = if request.glob.is_empty() { "**" } else { &request.glob };
        let glob = GlobBuilder::new(glob).literal_separator(true).build();
        let glob = glob.map_err(|error| Failure::new(Kind::Usage, error).hint("for example 'notes/**' or '*.txt'"))?;
        let glob = glob.compile_matcher();
        let matches = |path: &[u8]| glob.is_match(std::ffi::OsStr::from_bytes(path));
        let entries = self.undone(keys, request)?;
        let kv::Undone { change: kv::Restored { ops, restored, deleted }, kept } = keys.undone(&entries, &matches)?;
        let hashes = submit(keys, &request.store, ops, request.dry)?;
        Ok(UndoReply { hashes, restored, deleted, kept, entries: entries.len() as u64 })
    }
}

#[tonic::async_trait]
impl Past for Service {
    async fn show(&self, request: Request<ShowRequest>) -> Result<Response<ShowReply>, Status> {
        let registry = registry(self.host.as_ref())?;
        Ok(Response::new(blocking(move || show(&registry, request.get_ref())).await?))
    }

    type VersionsStream = Answers<Version>;

    async fn versions(&self, request: Request<VersionsRequest>) -> Result<Response<Self::VersionsStream>, Status> {
        let VersionsRequest { store, path } = request.into_inner();
        let keys = keys_of(self.host.as_ref(), &store).await?;
        Ok(answer(move |answers| {
            for version in keys.history(&path)? {
                let head = Some(described(keys.log(), &version.head));
                let names = version.supersedes.iter();
                let name = |(_, id): &(Hlc, HeadId)| HeadName { hash: id.entry.0.to_vec(), op: id.op.into() };
                let version = Version { head, supersedes: names.map(name).collect() };
                if answers.blocking_send(Ok(version)).is_err() {
                    break;
                }
            }
            Ok(())
        }))
    }

    type ThenStream = Answers<KeyThen>;

    async fn then(&self, request: Request<ThenRequest>) -> Result<Response<Self::ThenStream>, Status> {
        let request = request.into_inner();
        let keys = keys_of(self.host.as_ref(), &request.store).await?;
        Ok(answer(move |answers| then(&keys, request, answers)))
    }

    type ReadStream = Answers<GetPart>;

    async fn read(&self, request: Request<ReadVersionRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let keys = keys_of(self.host.as_ref(), &request.store).await?;
        Ok(answer(move |parts| read(&keys, &request, parts)))
    }

    async fn restore(&self, request: Request<RestoreRequest>) -> Result<Response<RestoreReply>, Status> {
        let request = request.into_inner();
        let keys = keys_of(self.host.as_ref(), &request.store).await?;
        Ok(Response::new(blocking(move || restore(&keys, request)).await?))
    }

    async fn undo(&self, request: Request<UndoRequest>) -> Result<Response<UndoReply>, Status> {
        let request = request.into_inner();
        let keys = keys_of(self.host.as_ref(), &request.store).await?;
        let service = self.clone();
        Ok(Response::new(blocking(move || service.take_back(&keys, &request)).await?))
    }

    type ProveStream = Answers<ProofPart>;

    async fn prove(&self, request: Request<ProveRequest>) -> Result<Response<Self::ProveStream>, Status> {
        let registry = registry(self.host.as_ref())?;
        let mut request = request.into_inner();
        if !request.path.is_empty() {
            if request.store.is_empty() {
                HOME.clone_into(&mut request.store);
            }
            keys_of(self.host.as_ref(), &request.store).await?;
        }
        Ok(answer(move |parts| super::prove::prove(&registry, request, parts)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::log::Receipt;

    #[test]
    fn what_fails_half_way_says_what_was_made_and_how_to_take_it_back() {
        let receipt = |n| Receipt { hash: Hash([n; 32]), hlc: Hlc(0), seq: 0, staged: 0 };
        let source = || KvError::Invalid("the disk is full".into());
        let failure = halfway("home", Partly { made: vec![receipt(1), receipt(2)], all: 5, source: source() });
        assert_eq!(failure.message, "2 of 5 entries were made, and then: the disk is full");
        assert!(failure.hint.unwrap().starts_with("`lattice undo 01010101 02020202 --store home` takes those back"));
        assert_eq!(halfway("home", Partly { made: Vec::new(), all: 5, source: source() }), source().into());
    }
}
