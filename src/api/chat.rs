//! Stores of the kind `chat`: posting and reading.

use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::failure::{Failure, Kind};
use super::host::Host;
use super::stores::{Answers, WAITING, blocking, registry};
use super::wire::{
    ChatLine, PostReply, PostRequest, Reaction, ReadRequest, RoomsReply, RoomsRequest, chat_server::Chat,
};
use crate::config::quoted;
use crate::ids::Hash;
use crate::replication::log::{Event, Origin};
use crate::stores::chat::{Chat as Rooms, ChatError, Message, News, Position};

/// Messages read from a room at once.
const PAGE: usize = 1_000;

pub(super) struct Service {
    pub(super) host: Arc<dyn Host>,
    pub(super) stop: CancellationToken,
}

impl From<ChatError> for Failure {
    fn from(error: ChatError) -> Self {
        match &error {
            ChatError::Submit(error) => error.into(),
            ChatError::Database(error) => error.into(),
            ChatError::NoMessage(_) => {
                Self::not_found(error).hint("the room shows the ids: `lattice chat ls` names the rooms")
            }
            ChatError::NotYours(..)
            | ChatError::Redacted(_)
            | ChatError::Ambiguous(_)
            | ChatError::Invalid(_)
            | ChatError::TooLarge { .. } => Self::refused(error),
        }
    }
}

fn no_room(room: &str) -> Failure {
    Failure::not_found(format!("there is no room '{room}'"))
        .hint("`lattice chat ls` names them; posting to a new name opens it")
}

fn told(rooms: &Rooms, message: &Message) -> ChatLine {
    let members = rooms.log().membership().load();
    let reactions = message.reactions.iter().map(|reaction| Reaction {
        emoji: reaction.emoji.clone(),
        by: reaction.by.iter().map(|(node, _)| members.name(node)).collect(),
    });
    ChatLine {
        line: rooms.line(message).trim_end_matches('\n').to_owned(),
        id: message.position.id.0.to_vec(),
        author: message.position.author.0.to_vec(),
        author_name: members.name(&message.position.author),
        hlc: message.position.hlc.0,
        text: message.text.clone(),
        reply_to: message.reply_to.map(|to| to.0.to_vec()),
        reactions: reactions.collect(),
        what: "message".into(),
        edited: message.edited.map(|at| at.0),
        redacted: message.redacted.map(|at| at.0),
    }
}

/// The messages that are there, the last `last` of them if not 0.
fn present(rooms: &Rooms, room: &str, last: u32) -> Result<Vec<ChatLine>, Failure> {
    let mut found = std::collections::VecDeque::new();
    let mut after: Option<Position> = None;
    loop {
        let page = rooms.messages(room, after.as_ref(), PAGE)?;
        after = page.last().map(|message| message.position);
        let whole = page.len() < PAGE;
        found.extend(page);
        while last > 0 && found.len() > last as usize {
            found.pop_front();
        }
        if whole {
            return Ok(found.iter().map(|message| told(rooms, message)).collect());
        }
    }
}

fn rendered(rooms: &Rooms, room: &str) -> Result<Vec<ChatLine>, Failure> {
    if rooms.room(room)?.is_none() {
        return Err(no_room(room));
    }
    let text = rooms.render(room)?;
    Ok(text.lines().map(|line| ChatLine { line: line.to_owned(), ..ChatLine::default() }).collect())
}

/// What an entry brought to a room.
fn brought(rooms: &Rooms, room: &str, event: &Event) -> Result<Vec<ChatLine>, Failure> {
    if !event.effects.changes.iter().any(|change| change.key == room.as_bytes()) {
        return Ok(Vec::new());
    }
    let news = rooms.brought(room, &event.entry)?.into_iter();
    let line = |News { what, message, line }| ChatLine {
        what: what.to_owned(),
        line: line.trim_end_matches('\n').to_owned(),
        ..told(rooms, &message)
    };
    Ok(news.map(line).collect())
}

async fn follow(
    rooms: Arc<Rooms>,
    request: ReadRequest,
    answers: &mpsc::Sender<Result<ChatLine, Status>>,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let mut events = rooms.log().subscribe();
    let ReadRequest { room, last, new_only, .. } = request;
    let mut lines = Vec::new();
    if !new_only {
        let (read, room) = (rooms.clone(), room.clone());
        lines = blocking(move || present(&read, &room, last)).await?;
    }
    let shown: std::collections::BTreeSet<_> = lines.iter().map(|line| line.id.clone()).collect();
    loop {
        for line in lines.drain(..) {
            if answers.send(Ok(line)).await.is_err() {
                return Ok(());
            }
        }
        let event = tokio::select! {
            event = events.recv() => event,
            () = stop.cancelled() => return Ok(()),
            () = answers.closed() => return Ok(()),
        };
        match event {
            Ok(event) if event.store == rooms.log().store() => {
                let (read, room) = (rooms.clone(), room.clone());
                lines = blocking(move || brought(&read, &room, &event)).await?;
                lines.retain(|line| line.what != "message" || !shown.contains(&line.id));
            }
            Ok(_) => {}
            Err(RecvError::Closed) => return Ok(()),
            Err(RecvError::Lagged(_)) => {
                return Err(Failure::new(Kind::Unavailable, "messages came faster than they were read")
                    .hint("begin again; what was missed is in the room"));
            }
        }
    }
}

fn post(rooms: &Rooms, request: &PostRequest) -> Result<PostReply, Failure> {
    let PostRequest { room, text, to, what } = request;
    let to = || -> Result<Hash, Failure> {
        if rooms.room(room)?.is_none() {
            return Err(no_room(room));
        }
        rooms.find(room, to).map_err(|error| match error {
            ChatError::NoMessage(_) => {
                Failure::from(error).hint(format!("`lattice chat ls {}` shows the ids", quoted(room.as_ref())))
            }
            error => error.into(),
        })
    };
    let receipt = match what.as_str() {
        "message" => rooms.post(room, text, Origin::Local)?,
        "reply" => rooms.reply(&to()?, text, Origin::Local)?,
        "reaction" => rooms.react(&to()?, text, Origin::Local)?,
        "edit" => rooms.edit(&to()?, text, Origin::Local)?,
        "redaction" => rooms.redact(&to()?, Origin::Local)?,
        other => return Err(Failure::new(Kind::Usage, format!("nothing in a room is a '{other}'"))),
    };
    rooms.log().wait(receipt.staged)?;
    Ok(PostReply { hash: receipt.hash.0.to_vec() })
}

impl Service {
    fn rooms(&self) -> Result<Arc<Rooms>, Failure> {
        registry(self.host.as_ref())?.chat().ok_or_else(|| {
            Failure::not_found("this mesh has no open chat store")
                .hint("`lattice store create chat --kind chat` declares one")
        })
    }
}

#[tonic::async_trait]
impl Chat for Service {
    async fn post(&self, request: Request<PostRequest>) -> Result<Response<PostReply>, Status> {
        let rooms = self.rooms()?;
        Ok(Response::new(blocking(move || post(&rooms, request.get_ref())).await?))
    }

    async fn rooms(&self, _: Request<RoomsRequest>) -> Result<Response<RoomsReply>, Status> {
        let rooms = self.rooms()?;
        let rooms = blocking(move || Ok(rooms.rooms()?.into_iter().map(|room| room.name).collect())).await?;
        Ok(Response::new(RoomsReply { rooms }))
    }

    type ReadStream = Answers<ChatLine>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let rooms = self.rooms()?;
        let (answers, stream) = mpsc::channel(WAITING);
        if request.follow {
            let stop = self.stop.clone();
            tokio::spawn(async move {
                if let Err(failure) = follow(rooms, request, &answers, stop).await {
                    // To a reader that is gone nothing can be told.
                    answers.send(Err(failure.into())).await.ok();
                }
            });
            return Ok(Response::new(ReceiverStream::new(stream)));
        }
        let lines = blocking(move || {
            if request.rendered {
                return rendered(&rooms, &request.room);
            }
            match present(&rooms, &request.room, request.last)? {
                lines if lines.is_empty() => Err(no_room(&request.room)),
                lines => Ok(lines),
            }
        });
        let lines = lines.await?;
        tokio::spawn(async move {
            for line in lines {
                if answers.send(Ok(line)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
