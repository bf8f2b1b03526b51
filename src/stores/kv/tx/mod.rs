//! Transactions: changes of several keys that are staged as files, and become one entry, or none.
//!
//! A transaction is a directory of this node, in the directory of its store in the mesh's `tx/`:
//!
//! | name         | holds |
//! |--------------|-------|
//! | `base`       | what it builds upon: the store as it was when it began (see `base`) |
//! | `files/`     | what is staged: plain files, whose names are those of keys (see `staged`) |
//! | `committing` | while it is committed: the BLAKE3 hash of the payload, so that after a crash it is known whether the entry is there |
//!
//! Each of its operations supersedes the heads that its key had in the base. If a key that it touches has other heads by now, it is
//! not committed unless that is forced; then both are heads.

mod base;
mod error;
mod plan;
mod staged;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use super::handle::{Kv, KvError, blob};
use super::model::{Kind, Value};
use crate::clock::Millis;
use crate::ids::{Hash, StoreId};
use crate::replication::limits;
use crate::replication::log::{Origin, Receipt, SubmitError};
use base::Base;
pub use error::TxError;
use error::{Result, shown};
use plan::Plan;
use staged::{Source, os};

/// What a transaction is renamed to for committing it; none has this name.
pub const COMMIT: &[u8] = b"commit";

const BASE: &str = "base";
const FILES: &str = "files";
const COMMITTING: &str = "committing";
/// How names of directories begin that are being made or removed.
const PASSING: &str = ".passing-";

/// Entries of this node's chain read at once.
const PAGE: usize = 1_000;

fn refused(name: &[u8]) -> Option<&'static str> {
    match name {
        b"" => Some("a name is needed"),
        COMMIT => Some("renaming one to that commits it"),
        name if name.starts_with(b".") => Some("names that begin with a dot are not listed"),
        name if name.contains(&b'/') || name.contains(&0) => Some("it is the name of a directory"),
        name if name.len() > limits::KEY_COMPONENT => Some("the name is too long"),
        _ => None,
    }
}

/// What of a key a transaction makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// The key.
    pub path: Vec<u8>,
    /// What it becomes.
    pub kind: Kind,
    /// The size of its content in bytes.
    pub size: u64,
}

/// What a transaction would do now.
#[derive(Debug, Default)]
pub struct Look {
    /// The keys that it would write, in the order of their paths.
    pub puts: Vec<Put>,
    /// The keys that it would delete.
    pub deletes: Vec<Vec<u8>>,
    /// The keys of these, and others in their way, that were changed after it began.
    pub moved: Vec<Vec<u8>>,
    /// Why it would not be committed, if so.
    pub why: Option<TxError>,
}

/// What a transaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The entry; none if there was nothing to do.
    pub receipt: Option<Receipt>,
    /// How many keys it wrote.
    pub put: usize,
    /// How many keys it deleted.
    pub deleted: usize,
}

/// A transaction that is open.
#[derive(Debug)]
pub struct Tx {
    name: Vec<u8>,
    dir: PathBuf,
    base: Base,
    /// Whether it is over. Held for reading while staged files change or are looked at, for writing while it ends.
    over: RwLock<bool>,
    /// Held by who looks: reading what its owner may not read changes permissions for that long.
    looking: Mutex<()>,
}

/// While it is held, a transaction does not end, and what is staged may be changed.
pub type Steady<'a> = RwLockReadGuard<'a, bool>;

impl Tx {
    fn new(name: Vec<u8>, dir: PathBuf, base: Base) -> Self {
        Self { name, dir, base, over: RwLock::new(false), looking: Mutex::default() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// When it began.
    #[must_use]
    pub const fn begun(&self) -> Millis {
        self.base.begun
    }

    /// The directory that holds what is staged.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        self.dir.join(FILES)
    }

    /// To be held while what is staged is changed.
    ///
    /// # Errors
    /// [`TxError::Busy`] while it is being committed, [`TxError::Over`] when it is over.
    pub fn steady(&self) -> Result<Steady<'_>> {
        let over = match self.over.try_read() {
            Ok(over) => over,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(TxError::Busy),
        };
        if *over { Err(TxError::Over) } else { Ok(over) }
    }

    fn ending(&self) -> Result<RwLockWriteGuard<'_, bool>> {
        let over = self.over.write().unwrap_or_else(PoisonError::into_inner);
        if *over { Err(TxError::Over) } else { Ok(over) }
    }

    fn plan(&self, kv: &Kv) -> Result<Plan> {
        Plan::new(kv, &self.base.moment(), staged::read(&self.files())?)
    }

    fn moved(&self, keys: impl IntoIterator<Item = Vec<u8>>) -> TxError {
        TxError::Moved { tx: shown(&self.name), keys: keys.into_iter().collect() }
    }

    /// What it would do now, and why it would not. Nothing is changed.
    #[must_use]
    pub fn look(&self, kv: &Kv) -> Look {
        let mut look = Look::default();
        look.why = self.look_into(kv, &mut look).err();
        look
    }

    fn look_into(&self, kv: &Kv, look: &mut Look) -> Result<()> {
        let _steady = self.steady()?;
        let looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = self.plan(kv)?;
        drop(looking);
        let put = |(path, source): (&[u8], &Source)| Put { path: path.to_vec(), kind: source.kind, size: source.size };
        look.puts = plan.puts().map(put).collect();
        look.deletes = plan.deletes().map(<[u8]>::to_vec).collect();
        look.moved = plan.moved(&kv.view()?).map_err(KvError::from)?.into_iter().collect();
        if !look.moved.is_empty() {
            return Err(self.moved(look.moved.clone()));
        }
        may_write(kv)?;
        fits(kv, &plan)
    }

    /// Makes the entry. It is not waited until that is durable.
    fn submit(&self, kv: &Kv, force: bool, origin: Origin) -> Result<Committed> {
        let plan = self.plan(kv)?;
        let moved = plan.moved(&kv.view()?).map_err(KvError::from)?;
        if !force && !moved.is_empty() {
            return Err(self.moved(moved));
        }
        fits(kv, &plan)?;
        let (put, deleted) = (plan.puts().count(), plan.deletes().count());
        let ops = plan.ops(|source| value(kv, source))?;
        if ops.is_empty() {
            return Ok(Committed { receipt: None, put, deleted });
        }
        let blobs: Vec<Hash> = ops.iter().filter_map(blob).collect();
        let payload = kv.encoded(ops)?;
        self.note(&payload)?;
        // Nothing that came since the look is overwritten: it is looked at once more right before the entry is made.
        let submitted = kv.submit_if(&payload, &blobs, origin, |view| Ok(force || plan.moved(view)?.is_empty()));
        if !matches!(submitted, Ok(Some(_))) {
            self.forget_note();
        }
        match submitted? {
            Some(receipt) => Ok(Committed { receipt: Some(receipt), put, deleted }),
            None => Err(self.moved(plan.moved(&kv.view()?).map_err(KvError::from)?)),
        }
    }

    fn committing(&self) -> PathBuf {
        self.dir.join(COMMITTING)
    }

    fn note(&self, payload: &[u8]) -> Result<()> {
        let path = self.committing();
        let write = || {
            fs::write(&path, Hash::from(blake3::hash(payload)).to_string())?;
            File::open(&path)?.sync_all()?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|error| TxError::io(&path, error))
    }

    fn forget_note(&self) {
        if let Err(error) = fs::remove_file(self.committing()) {
            tracing::warn!(target: "tx", tx = %shown(&self.name), %error, "a note of a commit stays behind");
        }
    }

    /// Whether the entry that it was to become is in the store: then the daemon ended right after it was made.
    fn was_committed(&self, kv: &Kv) -> Result<bool> {
        let text = match fs::read_to_string(self.committing()) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(TxError::io(&self.committing(), error)),
        };
        let Ok(payload) = text.parse::<Hash>() else { return Ok(false) };
        let log = kv.log();
        let view = kv.view()?;
        let me = log.me();
        let mut from = self.base.past.iter().find(|(author, _)| **author == me).map_or(0, |(_, seq)| seq + 1);
        loop {
            let page = log.chain(&view, &me, from, PAGE).map_err(KvError::from)?;
            if page.iter().any(|entry| entry.header().payload_hash == payload) {
                return Ok(true);
            }
            if page.len() < PAGE {
                return Ok(false);
            }
            from += PAGE as u64;
        }
    }
}

fn may_write(kv: &Kv) -> Result<()> {
    let log = kv.log();
    let refused = if !log.may_sign() {
        SubmitError::Regaining
    } else if !log.membership().load().may_write(&log.me()) {
        SubmitError::NotAllowed
    } else {
        return Ok(());
    };
    Err(KvError::Submit(refused).into())
}

/// Whether a plan fits one entry, by the sizes of what is staged: nothing of it is read.
fn fits(kv: &Kv, plan: &Plan) -> Result<()> {
    // Each takes that much at least.
    let mut all = 0;
    let ops = plan.ops(|source| {
        if source.size > limits::INLINE_VALUE as u64 {
            return Ok(Value::Blob { hash: Hash([0; 32]), size: source.size });
        }
        let size = usize::try_from(source.size).unwrap_or(usize::MAX);
        all += size;
        if all > limits::PAYLOAD {
            return Err(KvError::TooLarge { size: all, limit: limits::PAYLOAD }.into());
        }
        Ok(if size == 0 { Value::Empty } else { Value::Bytes(vec![b'x'; size]) })
    })?;
    if !ops.is_empty() {
        kv.encoded(ops)?;
    }
    Ok(())
}

fn value(kv: &Kv, source: &Source) -> Result<Value> {
    match source.kind {
        Kind::Directory | Kind::Deleted => Ok(Value::Empty),
        Kind::Symlink => {
            let target = fs::read_link(&source.file).map_err(|error| TxError::io(&source.file, error))?;
            Ok(kv.value(target.as_os_str().as_bytes())?)
        }
        Kind::File => {
            let opened = staged::readable(&source.file, |file| Ok((File::open(file)?, kv.value_of_file(file))));
            Ok(opened.map_err(|error| TxError::io(&source.file, error))?.1?)
        }
    }
}

/// The open transactions of a node in a mesh.
#[derive(Debug)]
pub struct Txs {
    dir: PathBuf,
    open: Mutex<Open>,
}

/// By store and name.
type Open = BTreeMap<(StoreId, Vec<u8>), Arc<Tx>>;

impl Txs {
    /// Those in the directory `dir`, which need not be there. What can't be read is left as it is.
    #[must_use]
    pub fn open(dir: PathBuf) -> Self {
        let txs = Self { dir, open: Mutex::default() };
        for above in inside(&txs.dir) {
            let store = above.file_name().and_then(OsStr::to_str).and_then(|name| name.parse::<StoreId>().ok());
            if let Some(store) = store {
                inside(&above).into_iter().for_each(|dir| txs.take_up(store, dir));
            }
        }
        txs
    }

    fn take_up(&self, store: StoreId, dir: PathBuf) {
        let Some(name) = dir.file_name().map(|name| name.as_bytes().to_vec()) else { return };
        let whole = || match !name.starts_with(PASSING.as_bytes()) && fs::exists(dir.join(FILES))? {
            true => Base::read(&dir.join(BASE)).map(Some),
            false => Ok(None),
        };
        match whole() {
            Ok(Some(base)) => {
                self.lock().insert((store, name.clone()), Arc::new(Tx::new(name, dir, base)));
            }
            // One that was being made or removed when the daemon ended.
            Ok(None) => {
                if let Err(error) = staged::clear(&dir) {
                    tracing::warn!(target: "tx", path = %dir.display(), %error, "what is left of a transaction stays behind");
                }
            }
            Err(error) => tracing::error!(target: "tx", path = %dir.display(), %error, "a transaction can't be read"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where those of a store are.
    #[must_use]
    pub fn of_store(&self, store: &StoreId) -> PathBuf {
        self.dir.join(store.to_string())
    }

    /// Ends those of a store that was just opened which had been committed when the daemon ended.
    pub(in crate::stores) fn recover(&self, kv: &Kv) {
        for tx in self.list(&kv.log().store()) {
            match tx.was_committed(kv) {
                Ok(true) => {
                    if let Ok(mut over) = tx.ending() {
                        self.end_committed(&kv.log().store(), &tx, &mut over);
                    }
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(target: "tx", tx = %shown(&tx.name), %error, "it may be committed already")
                }
            }
        }
    }

    /// The open transactions of a store, by name.
    #[must_use]
    pub fn list(&self, store: &StoreId) -> Vec<Arc<Tx>> {
        let open = self.lock();
        let of_store = open.range((*store, Vec::new())..).take_while(|((of, _), _)| of == store);
        of_store.map(|(_, tx)| Arc::clone(tx)).collect()
    }

    /// The open transaction of this name.
    ///
    /// # Errors
    /// [`TxError::Missing`].
    pub fn get(&self, store: &StoreId, name: &[u8]) -> Result<Arc<Tx>> {
        let found = self.lock().get(&(*store, name.to_vec())).cloned();
        found.ok_or_else(|| TxError::Missing(shown(name)))
    }

    /// Begins a transaction upon the store as it is now. It survives a crash of the machine when this returns.
    ///
    /// # Errors
    /// If there is one of this name, or none can have it, if this node may not write, or if the disk fails.
    pub fn begin(&self, kv: &Kv, name: &[u8]) -> Result<Arc<Tx>> {
        if let Some(why) = refused(name) {
            return Err(TxError::Name(shown(name), why));
        }
        may_write(kv)?;
        let store = kv.log().store();
        if self.get(&store, name).is_ok() {
            return Err(TxError::Exists(shown(name)));
        }
        let past = kv.log().present(&kv.view()?).map_err(KvError::from)?;
        // What the base counts survives a crash, as the base does: else another entry could get the number of one that is lost.
        kv.log().database().flush().map_err(KvError::from)?;
        let base = Base { begun: kv.log().now(), past: Arc::new(past) };
        let above = self.of_store(&store);
        let dir = above.join(os(name));
        let made = || {
            fs::create_dir_all(&above)?;
            let fresh = tempfile::Builder::new().prefix(PASSING).tempdir_in(&above)?.keep();
            fs::create_dir(fresh.join(FILES))?;
            base.write(&fresh.join(BASE))?;
            File::open(&fresh)?.sync_all()?;
            fs::rename(&fresh, &dir).inspect_err(|_| {
                // What stays behind is removed at the next start.
                staged::clear(&fresh).ok();
            })?;
            File::open(&above)?.sync_all()
        };
        made().map_err(|error| match error.kind() {
            // Another was faster.
            std::io::ErrorKind::DirectoryNotEmpty => TxError::Exists(shown(name)),
            _ => TxError::io(&dir, error),
        })?;
        let tx = Arc::new(Tx::new(name.to_vec(), dir, base));
        self.lock().insert((store, name.to_vec()), Arc::clone(&tx));
        Ok(tx)
    }

    /// Makes one entry of what is staged, durable when this returns; the transaction is then over. With `force` also if keys that it
    /// touches were changed meanwhile: they then have both versions as heads.
    ///
    /// # Errors
    /// [`TxError::Moved`] if they were; if what is staged makes no sense or does not fit an entry, or if the store takes no
    /// writes. Nothing is changed then, and all that is staged stays. But if the disk fails or is full once the entry is made, the
    /// error says so, and the transaction is over.
    pub fn commit(&self, kv: &Kv, name: &[u8], force: bool, origin: Origin) -> Result<Committed> {
        let store = kv.log().store();
        let tx = self.get(&store, name)?;
        let mut over = tx.ending()?;
        let committed = tx.submit(kv, force, origin).inspect_err(|error| {
            tracing::warn!(target: "tx", tx = %shown(name), %error, "not committed; what is staged stays");
            if let TxError::Moved { keys, .. } = error {
                for key in keys {
                    tracing::warn!(target: "tx", tx = %shown(name), key = %shown(key), "changed after it began");
                }
            }
        })?;
        let Some(receipt) = committed.receipt else {
            self.end(&store, &tx, &mut over)?;
            return Ok(committed);
        };
        if let Err(error) = kv.log().wait(receipt.staged) {
            // The entry may still get to the disk: the note tells the next start whether it did.
            self.forget(&store, &tx, &mut over);
            let said = format!("the entry is made, but not yet on the disk ({error}); {}", error.hint());
            return Err(TxError::io(&tx.dir, std::io::Error::other(said)));
        }
        self.end_committed(&store, &tx, &mut over);
        Ok(committed)
    }

    /// Forgets a transaction and all that is staged in it; if `empty`, only if nothing is.
    ///
    /// # Errors
    /// If there is none of this name, or if the disk fails; it can be tried again then.
    pub fn drop(&self, store: &StoreId, name: &[u8], empty: bool) -> Result<()> {
        let tx = self.get(store, name)?;
        let mut over = tx.ending()?;
        if empty {
            match fs::remove_dir(tx.files()) {
                // Tried before.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.map_err(|error| TxError::io(&tx.files(), error))?,
            }
        }
        self.end(store, &tx, &mut over)
    }

    /// Removes all that is left of a store that was deleted.
    ///
    /// # Errors
    /// If the disk fails.
    pub(in crate::stores) fn purge(&self, store: &StoreId) -> std::io::Result<()> {
        self.lock().retain(|(of, _), _| of != store);
        staged::clear(&self.of_store(store))
    }

    /// A transaction is over: nobody finds it any more.
    fn forget(&self, store: &StoreId, tx: &Tx, over: &mut bool) {
        *over = true;
        self.lock().remove(&(*store, tx.name.clone()));
    }

    /// Ends a transaction and removes it from the disk.
    ///
    /// # Errors
    /// If its directory can't be renamed; it goes on then.
    fn end(&self, store: &StoreId, tx: &Tx, over: &mut bool) -> Result<()> {
        let passing = self.of_store(store).join(format!("{PASSING}{:016x}", rand::random::<u64>()));
        fs::rename(&tx.dir, &passing).map_err(|error| TxError::io(&tx.dir, error))?;
        // From here on a crash leaves nothing that would be shown again.
        self.forget(store, tx, over);
        if let Err(error) = staged::clear(&passing) {
            tracing::warn!(target: "tx", tx = %shown(&tx.name), %error, "what is left of it stays behind");
        }
        Ok(())
    }

    /// The same for one whose entry is there, which is over in any case: if it can't be removed, its note tells the next start.
    fn end_committed(&self, store: &StoreId, tx: &Tx, over: &mut bool) {
        if let Err(error) = self.end(store, tx, over) {
            self.forget(store, tx, over);
            tracing::warn!(target: "tx", tx = %shown(&tx.name), %error, "a committed transaction stays behind");
        }
    }
}

/// What is in a directory; nothing if it is not there.
fn inside(dir: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    listed.unwrap_or_else(|error| {
        if error.kind() != std::io::ErrorKind::NotFound {
            tracing::error!(target: "tx", path = %dir.display(), %error, "transactions can't be read");
        }
        Vec::new()
    })
}
