//! The desk where joiners ask: the serving end of the join protocol.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::iroh::endpoint::Connection;
use ::iroh::protocol::{AcceptError, ProtocolHandler};
use arc_swap::ArcSwapOption;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::close;
use crate::ids::NodeId;
use crate::net::join::{self, Asked, JoinDesk, Refusal, Welcome};

/// How many may ask at once.
const PLACES: usize = 8;
/// How long a stranger may take to ask, and to take a refusal.
const STRANGER: Duration = Duration::from_secs(3);
/// How long one who has been let in may take to take the answer.
const WELCOMED: Duration = Duration::from_secs(60);

struct Seat(Arc<dyn JoinDesk>);

/// The desk. Empty until the mesh sits down at it.
pub(super) struct Desk {
    seat: ArcSwapOption<Seat>,
    places: Semaphore,
}

impl Default for Desk {
    fn default() -> Self {
        Self { seat: ArcSwapOption::empty(), places: Semaphore::new(PLACES) }
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("open", &self.is_open()).finish_non_exhaustive()
    }
}

impl Desk {
    pub(super) fn set(&self, desk: Option<Arc<dyn JoinDesk>>) {
        self.seat.store(desk.map(|desk| Arc::new(Seat(desk))));
    }

    pub(super) fn is_open(&self) -> bool {
        self.seat.load().is_some()
    }

    async fn serve(&self, connection: &Connection) -> Result<(), String> {
        let ask = async {
            let (send, mut receive) = connection.accept_bi().await.map_err(|error| error.to_string())?;
            let asked: Option<Asked> = join::read(&mut receive, join::REQUEST_BYTES).await.ok();
            Ok::<_, String>((send, asked))
        };
        let (mut send, asked) = timeout(STRANGER, ask).await.map_err(|_elapsed| "too slow to ask".to_owned())??;
        let answer = self.answer(NodeId(*connection.remote_id().as_bytes()), asked).await;
        let patience = if answer.is_ok() { WELCOMED } else { STRANGER };
        let reply = async {
            join::write(&mut send, &answer).await.map_err(|error| error.to_string())?;
            send.finish().map_err(|error| error.to_string())?;
            connection.closed().await;
            Ok(())
        };
        timeout(patience, reply).await.map_err(|_elapsed| "too slow to listen".to_owned())?
    }

    async fn answer(&self, joiner: NodeId, asked: Option<Asked>) -> Result<Welcome, Refusal> {
        let request = asked.and_then(|asked| asked.request(joiner)).ok_or(Refusal::Malformed)?;
        let seat = self.seat.load_full().ok_or(Refusal::NoMesh)?;
        if !request.is_proven() {
            return Err(Refusal::Wrong);
        }
        tokio::task::spawn_blocking(move || seat.0.redeem(request))
            .await
            .unwrap_or_else(|error| Err(Refusal::Failed(error.to_string())))
    }
}

impl ProtocolHandler for Desk {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let Ok(_place) = self.places.try_acquire() else {
            connection.close(close::BUSY.into(), b"too many want to join at once");
            return Ok(());
        };
        if let Err(reason) = self.serve(&connection).await {
            tracing::debug!(reason, "a joiner was cut off");
            connection.close(close::SLOW.into(), reason.as_bytes());
        }
        Ok(())
    }
}
