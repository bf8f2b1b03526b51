//! The control service's messages as JSON. Scripts rely on these names.

use serde_json::{Map, Value, json};

use super::output::{hex, utc};
use crate::api::wire;
use crate::clock::Hlc;

/// A path as text, and as hexadecimal too if it is no UTF-8.
fn path_into(object: &mut Map<String, Value>, path: &[u8]) {
    object.insert("path".into(), String::from_utf8_lossy(path).into());
    if std::str::from_utf8(path).is_err() {
        object.insert("path_hex".into(), hex(path).into());
    }
}

pub(super) fn with_path(path: &[u8], rest: Value) -> Value {
    let mut object = Map::new();
    path_into(&mut object, path);
    if let Value::Object(rest) = rest {
        object.extend(rest);
    }
    object.into()
}

pub(super) fn time(hlc: u64) -> String {
    utc(Hlc(hlc).millis().0)
}

pub(super) fn mesh(mesh: &wire::MeshInfo) -> Value {
    json!({
        "id": hex(&mesh.id), "name": mesh.name, "role": mesh.role, "members": mesh.members, "online": mesh.online,
        "ended": mesh.ended,
    })
}

pub(super) fn store(store: &wire::Store) -> Value {
    json!({
        "id": hex(&store.id), "name": store.name, "kind": store.kind, "damaged": store.damaged,
        "entries": store.entries, "keys": store.keys, "conflicts": store.conflicts,
        "missing_entries": store.missing_entries, "missing_blobs": store.missing_blobs, "settled": store.settled,
        "bytes": store.bytes,
    })
}

pub(super) fn status(status: &wire::StatusReply) -> Value {
    json!({
        "version": status.version, "node": hex(&status.node), "name": status.name, "data": status.data,
        "pid": status.pid, "started": utc(status.started), "listening": status.listening, "mounts": status.mounts,
        "mesh": status.mesh.as_ref().map(mesh), "stores": status.stores.iter().map(store).collect::<Vec<_>>(),
        "warnings": status.warnings, "forks": status.forks, "forkers": status.forkers,
    })
}

pub(super) fn peer(peer: &wire::Peer) -> Value {
    json!({
        "id": hex(&peer.id), "name": peer.name, "role": peer.role, "me": peer.me, "left": peer.left, "removed": peer.removed,
        "forked": peer.forked, "online": peer.online, "address": peer.address, "rtt_us": peer.rtt,
        "last_seen": peer.last_seen.map(utc), "lag": peer.lag, "version": peer.version,
    })
}

pub(super) fn head(head: &wire::Head) -> Value {
    json!({
        "hash": hex(&head.hash), "op": head.op, "author": hex(&head.author), "author_name": head.author_name,
        "seq": head.seq, "hlc": head.hlc, "time": time(head.hlc), "kind": head.kind,
        "mode": format!("{:04o}", head.mode), "mtime_ns": head.mtime, "size": head.size, "content": hex(&head.content),
    })
}

pub(super) fn key(key: &wire::Key) -> Value {
    with_path(&key.path, json!({"heads": key.heads.iter().map(head).collect::<Vec<_>>(), "shadowed": key.shadowed}))
}

pub(super) fn key_of(store: &str, found: &wire::Key) -> Value {
    let mut value = key(found);
    value["store"] = store.into();
    value
}

pub(super) fn change(change: &wire::ChangedKey) -> Value {
    with_path(
        &change.path,
        json!({
            "what": change.what, "author": hex(&change.author), "author_name": change.author_name,
            "hlc": change.hlc, "time": time(change.hlc), "hash": hex(&change.hash),
        }),
    )
}

/// How a key changed; `diff` if it is text.
pub(super) fn change_of(
    path: &[u8],
    before: Option<&wire::Head>,
    after: Option<&wire::Head>,
    diff: Option<String>,
) -> Value {
    with_path(path, json!({"before": before.map(head), "after": after.map(head), "diff": diff}))
}

pub(super) fn paths(paths: &[Vec<u8>]) -> Value {
    paths.iter().map(|path| String::from_utf8_lossy(path)).collect()
}

pub(super) fn going_back(hashes: &[Vec<u8>], restored: &[Vec<u8>], deleted: &[Vec<u8>]) -> Value {
    let hashes: Vec<_> = hashes.iter().map(|hash| hex(hash)).collect();
    json!({"hashes": hashes, "restored": paths(restored), "deleted": paths(deleted)})
}

pub(super) fn entry(entry: &wire::LogEntry) -> Value {
    json!({
        "hash": hex(&entry.hash), "author": hex(&entry.author), "author_name": entry.author_name, "seq": entry.seq,
        "hlc": entry.hlc, "time": time(entry.hlc),
        "parents": entry.parents.iter().map(|parent| hex(parent)).collect::<Vec<_>>(),
        "size": entry.size, "does": entry.does, "noop": entry.noop,
    })
}

pub(super) fn message(room: &str, message: &wire::ChatLine) -> Value {
    let reactions: Vec<_> =
        message.reactions.iter().map(|reaction| json!({"emoji": reaction.emoji, "by": reaction.by})).collect();
    json!({
        "what": message.what, "room": room, "id": hex(&message.id), "author": hex(&message.author), "author_name": message.author_name,
        "hlc": message.hlc, "time": time(message.hlc), "text": message.text,
        "reply_to": message.reply_to.as_deref().map(hex), "reactions": reactions,
        "edited": message.edited.map(time), "redacted": message.redacted.map(time),
    })
}
