//! Shared queues: messages from filter to filter, across VMs and workers.
//!
//! A queue has a name, belongs to a `vm_id` and lives as long as that has filters. The instance that registered it last
//! is notified of each message; if that instance is gone, the one before it is. Registering creates the queue if it
//! does not exist and keeps its content. Any filter may enqueue messages; only filters of the queue's `vm_id` may
//! dequeue them.
//!
//! A reader has at most one pending notification, however many messages there are; after handling one message it polls
//! for the next one. No lock is held while names are hashed or messages copied.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;

use crate::chain::charge::{ITEM, MemoryBudget, MemoryCharge};

/// Maximum number of queues per `vm_id`.
const MAX_QUEUES: usize = 1024;

/// Maximum bytes of a queue's name, and of the `vm_id` used to look it up.
const MAX_NAME: usize = 4096;

/// Maximum number of instances that read one queue; beyond it, the oldest registration is dropped.
const MAX_READERS: usize = 1024;

/// Maximum bytes queued in one queue, in all queues of a `vm_id`, and in all queues.
const MAX_BYTES: usize = 16 << 20;
const MAX_OWNED: usize = 64 << 20;
const MAX_ALL: usize = 256 << 20;

/// The channel that notifies an instance that a queue (by id) has messages.
pub type QueueNotification = UnboundedSender<u32>;

/// All queues, by id.
pub struct Queues {
    by_id: RwLock<HashMap<u32, Weak<Queue>>>,
    last: AtomicU32,
    bytes: Arc<MemoryBudget>,
}

/// The queues of a `vm_id`.
pub struct OwnedQueues {
    by_name: Mutex<HashMap<Box<str>, Arc<Queue>>>,
    bytes: Arc<MemoryBudget>,
}

struct Queue {
    id: u32,
    owner: Arc<MemoryBudget>,
    bytes: Arc<MemoryBudget>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    messages: VecDeque<Message>,
    /// In order of registration; the last one is notified.
    readers: Vec<QueueNotification>,
    /// The reader has a pending notification and will poll until there is nothing left.
    notified: bool,
    /// Messages that the reader was not notified of yet.
    unannounced: usize,
}

/// A message.
pub struct Message {
    /// The payload.
    pub bytes: Bytes,
    /// Charged to the sender, the queue, its owner, and all queues.
    _charges: [MemoryCharge; 4],
}

/// Why a message was not enqueued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnqueueError {
    /// The queue does not exist.
    Unknown,
    /// The queue, or another budget, is full.
    Full,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Queues {
    fn default() -> Queues {
        Queues { by_id: RwLock::default(), last: AtomicU32::new(0), bytes: MemoryBudget::new(MAX_ALL, None) }
    }
}

impl Default for OwnedQueues {
    fn default() -> OwnedQueues {
        OwnedQueues { by_name: Mutex::default(), bytes: MemoryBudget::new(MAX_OWNED, None) }
    }
}

impl OwnedQueues {
    /// The id of the queue of this name.
    pub fn resolve(&self, name: &str) -> Option<u32> {
        if name.len() > MAX_NAME {
            return None;
        }
        lock(&self.by_name).get(name).map(|queue| queue.id)
    }

    /// Whether a `vm_id` is short enough to be valid.
    pub fn is_name(vm_id: &str) -> bool {
        vm_id.len() <= MAX_NAME
    }

    /// Removes a queue and its messages.
    pub fn remove(&self, id: u32) {
        lock(&self.by_name).retain(|_, queue| queue.id != id);
    }
}

impl Queues {
    /// Returns the id of the queue of this name, and whether it was created. `None` if there are too many queues or the
    /// name is too long.
    pub fn open(&self, owned: &OwnedQueues, name: &str) -> Option<(u32, bool)> {
        if name.len() > MAX_NAME {
            return None;
        }
        let mut by_name = lock(&owned.by_name);
        if let Some(queue) = by_name.get(name) {
            return Some((queue.id, false));
        }
        if by_name.len() >= MAX_QUEUES {
            return None;
        }
        let mut by_id = self.by_id.write().unwrap_or_else(PoisonError::into_inner);
        by_id.retain(|_, queue| queue.strong_count() > 0);
        let id = loop {
            // After wrapping around, ids that are in use are skipped.
            let id = self.last.fetch_add(1, Relaxed).wrapping_add(1);
            if id != 0 && !by_id.contains_key(&id) {
                break id;
            }
        };
        let bytes = MemoryBudget::new(MAX_BYTES, None);
        let queue = Arc::new(Queue { id, owner: owned.bytes.clone(), bytes, state: Mutex::default() });
        by_id.insert(id, Arc::downgrade(&queue));
        by_name.insert(name.into(), queue);
        Some((id, true))
    }

    fn get(&self, id: u32) -> Option<Arc<Queue>> {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner).get(&id)?.upgrade()
    }

    /// Makes this instance the queue's reader. It is also notified of messages that arrived while there was no reader.
    pub fn read(&self, id: u32, reader: QueueNotification) {
        let Some(queue) = self.get(id) else { return };
        let mut state = lock(&queue.state);
        // An instance may register repeatedly.
        state.readers.retain(|known| !known.is_closed() && !known.same_channel(&reader));
        if state.readers.len() >= MAX_READERS {
            state.readers.remove(0);
        }
        state.readers.push(reader);
        // A previous reader may be gone together with its notification.
        state.notified = false;
        state.note(id);
    }

    /// Enqueues a message, charged to its sender, and notifies the reader.
    pub fn send(&self, id: u32, message: &[u8], sender: &Arc<MemoryBudget>) -> Result<(), EnqueueError> {
        let message = self.charged(id, message, sender)?;
        self.deliver(message);
        Ok(())
    }

    /// Creates a message for a queue: charged for but not delivered yet.
    pub fn charged(&self, id: u32, message: &[u8], sender: &Arc<MemoryBudget>) -> Result<Undelivered, EnqueueError> {
        let queue = self.get(id).ok_or(EnqueueError::Unknown)?;
        let size = message.len() + ITEM;
        let charge = |ledger: &Arc<MemoryBudget>| ledger.charge(size).map_err(|_| EnqueueError::Full);
        let charges = [charge(sender)?, charge(&queue.bytes)?, charge(&queue.owner)?, charge(&self.bytes)?];
        let message = Message { bytes: Bytes::copy_from_slice(message), _charges: charges };
        Ok(Undelivered { queue: Arc::downgrade(&queue), message })
    }

    /// Enqueues a charged message and notifies the reader.
    pub fn deliver(&self, Undelivered { queue, message }: Undelivered) {
        let Some(queue) = queue.upgrade() else { return };
        let mut state = lock(&queue.state);
        state.messages.push_back(message);
        state.unannounced += 1;
        state.note(queue.id);
    }

    /// Dequeues the first message for a filter of the queue's owner. The outer `None`: the owner has no such queue; the
    /// inner `None`: the queue is empty.
    pub fn take(&self, id: u32, owned: &OwnedQueues) -> Option<Option<Message>> {
        let queue = self.get(id).filter(|queue| Arc::ptr_eq(&queue.owner, &owned.bytes))?;
        let message = lock(&queue.state).messages.pop_front();
        Some(message)
    }

    /// Puts back a message that was dequeued but could not be handed to the filter. The reader is not notified again.
    pub fn put_back(&self, id: u32, message: Message) {
        if let Some(queue) = self.get(id) {
            lock(&queue.state).messages.push_front(message);
        }
    }

    /// Polled by a notified reader: whether there is another message for it to handle. After `false`, the next message
    /// triggers a new notification.
    pub fn tell(&self, id: u32) -> bool {
        let Some(queue) = self.get(id) else { return false };
        let mut state = lock(&queue.state);
        // Some may have been dequeued without a notification.
        state.unannounced = state.unannounced.min(state.messages.len());
        state.notified = state.unannounced > 0;
        state.unannounced = state.unannounced.saturating_sub(1);
        state.notified
    }

    /// Removes a reader, perhaps with a pending notification; its unhandled messages are announced to the previous
    /// reader, or to the next one that registers.
    pub fn pass_on(&self, id: u32, gone: &QueueNotification) {
        let Some(queue) = self.get(id) else { return };
        let mut state = lock(&queue.state);
        state.readers.retain(|known| !known.same_channel(gone));
        state.notified = false;
        state.note(id);
    }
}

/// A message that is charged for but not in its queue yet.
pub struct Undelivered {
    queue: Weak<Queue>,
    message: Message,
}

impl State {
    /// Notifies the last live reader, if there is something new and no notification is pending.
    fn note(&mut self, id: u32) {
        if self.unannounced == 0 {
            return;
        }
        while let Some(reader) = self.readers.last() {
            if reader.is_closed() {
                self.notified = false;
                self.readers.pop();
            } else if self.notified || reader.send(id).is_ok() {
                self.notified = true;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;

    /// A budget that is large enough for every test here.
    fn sender() -> Arc<MemoryBudget> {
        MemoryBudget::new(usize::MAX, None)
    }

    fn take(queues: &Queues, id: u32, owned: &OwnedQueues) -> Option<Option<Bytes>> {
        queues.take(id, owned).map(|taken| taken.map(|message| message.bytes))
    }

    fn open(queues: &Queues, owned: &OwnedQueues, name: &str) -> Option<u32> {
        queues.open(owned, name).map(|(id, _)| id)
    }

    #[test]
    fn last_live_reader_is_notified() {
        let (queues, owned) = (Queues::default(), OwnedQueues::default());
        let ((first, mut first_inbox), (second, mut second_inbox)) = (unbounded_channel(), unbounded_channel());
        let id = open(&queues, &owned, "q").unwrap();
        queues.read(id, first);
        assert_eq!(queues.open(&owned, "q"), Some((id, false)));
        queues.read(id, second);
        assert_eq!((owned.resolve("q"), owned.resolve("none")), (Some(id), None));
        queues.send(id, b"1", &sender()).unwrap();
        assert_eq!((first_inbox.try_recv().ok(), second_inbox.try_recv().ok()), (None, Some(id)));
        // The reader is gone before it could poll.
        drop(second_inbox);
        queues.send(id, b"2", &sender()).unwrap();
        assert_eq!(first_inbox.try_recv().ok(), Some(id));
        assert_eq!([queues.tell(id), queues.tell(id), queues.tell(id)], [true, true, false]);
        assert_eq!([0; 3].map(|_| take(&queues, id, &owned).unwrap()), [Some("1".into()), Some("2".into()), None]);
        assert_eq!((take(&queues, 0, &owned), take(&queues, 9, &owned)), (None, None));
        assert_eq!(queues.send(9, b"", &sender()), Err(EnqueueError::Unknown));
    }

    #[test]
    fn reader_has_one_pending_notification() {
        let (queues, owned) = (Queues::default(), OwnedQueues::default());
        let id = open(&queues, &owned, "q").unwrap();
        let ((before, mut inbox_before), (reader, mut inbox)) = (unbounded_channel(), unbounded_channel());
        queues.read(id, before);
        queues.read(id, reader.clone());
        (0..1000).for_each(|_| queues.send(id, b"m", &sender()).unwrap());
        assert_eq!((inbox.try_recv().ok(), inbox.try_recv().ok()), (Some(id), None));
        // It is notified of one message and then goes away.
        assert!(queues.tell(id));
        queues.pass_on(id, &reader);
        assert_eq!(inbox_before.try_recv().ok(), Some(id));
        queues.read(id, reader);
        assert_eq!(inbox.try_recv().ok(), Some(id));
        assert_eq!((0..2000).filter(|_| queues.tell(id)).count(), 999);
        queues.send(id, b"m", &sender()).unwrap();
        assert_eq!((inbox.try_recv().ok(), inbox.try_recv().ok()), (Some(id), None));
        while queues.take(id, &owned).unwrap().is_some() {}
        assert!(!queues.tell(id), "it has already been dequeued");
    }

    #[test]
    fn undeliverable_message_is_put_back_first() {
        let (queues, owned, sender) = (Queues::default(), OwnedQueues::default(), sender());
        let id = open(&queues, &owned, "q").unwrap();
        (1..3u8).for_each(|i| queues.send(id, &[i], &sender).unwrap());
        let message = queues.take(id, &owned).unwrap().unwrap();
        queues.put_back(id, message);
        assert_eq!(sender.held(), 2 * (ITEM + 1));
        assert_eq!(take(&queues, id, &owned).unwrap().unwrap(), &[1][..]);
        assert_eq!(sender.held(), ITEM + 1);
    }

    #[test]
    fn reader_is_notified_of_earlier_messages() {
        let (queues, owned) = (Queues::default(), OwnedQueues::default());
        let id = open(&queues, &owned, "q").unwrap();
        for message in [b"1", b"2", b"3"] {
            queues.send(id, message, &sender()).unwrap();
        }
        queues.take(id, &owned).unwrap().unwrap();
        let (reader, mut inbox) = unbounded_channel();
        queues.read(id, reader.clone());
        queues.read(id, reader);
        assert_eq!(inbox.try_recv().ok(), Some(id));
        assert_eq!([0; 3].map(|_| queues.tell(id)), [true, true, false]);
        assert_eq!(lock(&queues.get(id).unwrap().state).readers.len(), 1, "repeated registrations count once");
    }

    #[test]
    fn only_the_owner_dequeues_and_messages_are_dropped_with_it() {
        let (queues, owned, other) = (Queues::default(), OwnedQueues::default(), OwnedQueues::default());
        let id = open(&queues, &owned, "q").unwrap();
        let sender = sender();
        queues.send(id, b"message", &sender).unwrap();
        assert_eq!(take(&queues, id, &other), None);
        assert_eq!(sender.held(), 7 + ITEM);
        drop(owned);
        assert_eq!((sender.held(), queues.bytes.held()), (0, 0));
        assert_eq!(queues.send(id, b"message", &sender), Err(EnqueueError::Unknown));
        assert_eq!((open(&queues, &other, "q"), queues.by_id.read().unwrap().len()), (Some(id + 1), 1));
    }

    #[test]
    fn size_is_limited() {
        let (queues, owned) = (Queues::default(), OwnedQueues::default());
        let id = open(&queues, &owned, "q").unwrap();
        let sender = sender();
        let sent = (0..1_000_000).take_while(|_| queues.send(id, b"", &sender).is_ok()).count();
        assert_eq!(sent, MAX_BYTES / ITEM);
        assert_eq!(queues.send(id, b"", &sender), Err(EnqueueError::Full));
        queues.take(id, &owned).unwrap().unwrap();
        queues.send(id, b"", &sender).unwrap();
        assert_eq!(
            queues.send(id, b"", &MemoryBudget::new(0, None)),
            Err(EnqueueError::Full),
            "a sender without a budget"
        );
        let made = (0..5000).take_while(|i| open(&queues, &owned, &i.to_string()).is_some()).count();
        assert_eq!(made, MAX_QUEUES - 1);

        // Each of many queues could still be filled, but not all of them.
        let message = vec![0; MAX_BYTES - ITEM];
        let of = |owned: &OwnedQueues| {
            let ids: Vec<_> = (0..8).filter_map(|i| open(&queues, owned, &i.to_string())).collect();
            ids.into_iter().filter(|id| queues.send(*id, &message, &sender).is_ok()).count()
        };
        let owners: Vec<OwnedQueues> = (0..8).map(|_| OwnedQueues::default()).collect();
        let filled: Vec<_> = owners.iter().map(of).collect();
        assert!(
            filled[0] <= MAX_OWNED / MAX_BYTES && filled.iter().sum::<usize>() <= MAX_ALL / MAX_BYTES,
            "{filled:?}"
        );
        drop(owners);

        let (queues, owned) = (Queues::default(), OwnedQueues::default());
        let long = "n".repeat(MAX_NAME + 1);
        assert_eq!((queues.open(&owned, &long), owned.resolve(&long)), (None, None));
        let id = open(&queues, &owned, "q").unwrap();
        let (reader, mut inbox) = unbounded_channel();
        (0..3 * MAX_READERS).for_each(|_| queues.read(id, reader.clone()));
        queues.send(id, b"", &sender).unwrap();
        assert_eq!((inbox.try_recv().ok(), inbox.try_recv().ok()), (Some(id), None));
        assert_eq!(lock(&queues.get(id).unwrap().state).readers.len(), 1, "an existing reader is listed once");
        let others: Vec<_> = (0..MAX_READERS + 5).map(|_| unbounded_channel()).collect();
        others.iter().for_each(|(other, _)| queues.read(id, other.clone()));
        assert_eq!(lock(&queues.get(id).unwrap().state).readers.len(), MAX_READERS);
    }
}
