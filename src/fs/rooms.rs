//! Rooms as text: what whoever opens one reads, and what whoever keeps it open reads on.
//!
//! Read from its start, a room shows replies beneath what they answer, so what comes late changes its middle. Whoever
//! follows it (`tail -f`) has an offset, beyond which there must be nothing twice and nothing missing. So to each opening a room is
//! what it was at that moment, and after that a line for each thing that is new since.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::draft::part;
use super::errno::Answer;
use super::tree::locked;
use crate::ids::StoreId;
use crate::stores::Chat;
use crate::stores::chat::{Form, Reading};

type Shared = Arc<Mutex<Room>>;

/// The rooms that were looked at, by name and form.
#[derive(Debug, Default)]
pub(crate) struct Rooms(Mutex<BTreeMap<(String, Form), Shared>>);

#[derive(Debug, Default)]
struct Room {
    /// The store that the text shows, and which of its states.
    state: Option<(StoreId, u64)>,
    reading: Reading,
    text: Arc<Vec<u8>>,
    /// Lines on what is new since the first of the present openings was made.
    news: Vec<u8>,
    /// For each opening: how long the room was then, and how much news there was.
    openings: BTreeMap<u64, (usize, usize)>,
    next: u64,
}

impl Room {
    fn update(&mut self, chat: &Chat, (name, form): (&str, Form)) -> Answer<()> {
        // Taken first: what comes while the room is read is read again the next time.
        let state = (chat.log().store(), chat.log().database().staged());
        if self.state == Some(state) {
            return Ok(());
        }
        let mut reading = if self.openings.is_empty() {
            self.news.clear();
            chat.reading(name, form)?
        } else {
            let (reading, news) = chat.since(name, form, &self.reading)?;
            self.news.extend(news.into_bytes());
            reading
        };
        self.text = Arc::new(std::mem::take(&mut reading.text).into_bytes());
        self.reading = reading;
        self.state = Some(state);
        Ok(())
    }

    /// The size to tell: never less than any opening has to read, or its reader would take the room for truncated.
    fn size(&self) -> usize {
        let read = self.openings.values().map(|(length, from)| length + self.news.len() - from);
        read.max().unwrap_or(0).max(self.text.len())
    }
}

/// An opening of a room for reading.
#[derive(Debug)]
pub(crate) struct Reader {
    room: Arc<Mutex<Room>>,
    number: u64,
    /// The room as it was.
    text: Arc<Vec<u8>>,
    /// Where in the news that begins which is new to this one.
    from: usize,
}

impl Rooms {
    fn room(&self, (name, form): (&str, Form)) -> Shared {
        Arc::clone(locked(&self.0).entry((name.to_owned(), form)).or_default())
    }

    /// How large the room is now.
    pub(crate) fn size(&self, chat: &Chat, name: (&str, Form)) -> Answer<u64> {
        let room = self.room(name);
        let mut room = locked(&room);
        room.update(chat, name)?;
        Ok(room.size() as u64)
    }

    /// Opens a room for reading.
    pub(crate) fn open(&self, chat: &Chat, name: (&str, Form)) -> Answer<Reader> {
        let shared = self.room(name);
        let mut room = locked(&shared);
        room.update(chat, name)?;
        let (number, text, from) = (room.next, Arc::clone(&room.text), room.news.len());
        room.next += 1;
        room.openings.insert(number, (text.len(), from));
        drop(room);
        Ok(Reader { room: shared, number, text, from })
    }
}

impl Reader {
    /// At most `size` bytes from `offset` on.
    pub(crate) fn read(&self, chat: &Chat, name: (&str, Form), offset: u64, size: usize) -> Answer<Vec<u8>> {
        let mut bytes = part(&self.text, offset, size);
        if bytes.len() < size {
            let mut room = locked(&self.room);
            room.update(chat, name)?;
            let beyond = offset.saturating_sub(self.text.len() as u64);
            bytes.extend(part(&room.news[self.from..], beyond, size - bytes.len()));
        }
        Ok(bytes)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        locked(&self.room).openings.remove(&self.number);
    }
}
