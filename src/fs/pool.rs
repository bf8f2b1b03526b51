//! Work that may take long, away from the threads that answer the kernel.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

type Job = Box<dyn FnOnce() + Send>;

/// Calls that wait for a thread at most; one more is refused.
const QUEUE: usize = 1_024;

/// How many calls wait for a thread or run on one.
#[derive(Debug, Default, Clone)]
pub(crate) struct Calls(Arc<AtomicUsize>);

/// One such call, until it is dropped.
#[derive(Debug)]
pub(crate) struct Call(Arc<AtomicUsize>);

impl Calls {
    pub(crate) fn begin(&self) -> Call {
        self.0.fetch_add(1, Ordering::SeqCst);
        Call(Arc::clone(&self.0))
    }

    pub(crate) fn none(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A few threads and their queue. They end when the pool is dropped and the queue is empty.
#[derive(Debug)]
pub(crate) struct Pool {
    jobs: SyncSender<Job>,
}

impl Pool {
    /// Starts `threads` of them.
    pub(crate) fn new(name: &str, threads: usize) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let queue = Arc::clone(&queue);
            drop(std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&queue))?);
        }
        Ok(Self { jobs })
    }

    /// Runs `job` soon; `false` if too much waits already. What the job owns is then dropped.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) -> bool {
        match self.jobs.try_send(Box::new(job)) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}

fn run(queue: &Mutex<Receiver<Job>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        if std::panic::catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!(target: "fs", "a call failed in a way it never should");
        }
    }
}
