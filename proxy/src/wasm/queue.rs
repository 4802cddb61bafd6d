//! Shared queues: messages from filter to filter, across VMs and workers.
//!
//! A queue has a name and belongs to a `vm_id`. Who registers it last is told of each message; if that instance is gone, the
//! one before it is. Registering creates the queue if it is not there, and keeps what is in it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;

/// Queues of the process.
const MAX_QUEUES: usize = 1024;

/// Bytes of a queue's name.
const MAX_NAME: usize = 4096;

/// Instances that read one queue: the oldest are told no more.
const MAX_READERS: usize = 1024;

/// Bytes that wait in one queue, each message counted with 64 more.
const MAX_BYTES: usize = 16 << 20;

/// What an instance is told: this queue has a message.
pub type Note = UnboundedSender<u32>;

/// All queues.
#[derive(Default)]
pub struct Queues(Mutex<All>);

#[derive(Default)]
struct All {
    ids: HashMap<(String, String), u32>,
    /// By id, which begins with 1.
    queues: Vec<Arc<Mutex<Queue>>>,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Bytes>,
    bytes: usize,
    /// The last one is told.
    readers: Vec<Note>,
    /// Messages of which nobody could be told: there was no reader.
    untold: usize,
}

impl Queue {
    fn tell(&mut self, id: u32) {
        while self.readers.last().is_some_and(|reader| reader.send(id).is_err()) {
            self.readers.pop();
        }
        self.untold += usize::from(self.readers.is_empty());
    }
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSent {
    /// There is no such queue.
    Unknown,
    /// It is full.
    Full,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cost(message: &[u8]) -> usize {
    message.len() + 64
}

impl Queues {
    /// The queue of this name, made if it is not there. `None`: there are too many, or the name is too long.
    pub fn open(&self, vm_id: &str, name: &str) -> Option<u32> {
        let mut all = lock(&self.0);
        let key = (vm_id.to_owned(), name.to_owned());
        match all.ids.get(&key) {
            Some(id) => Some(*id),
            None if all.queues.len() >= MAX_QUEUES || name.len() > MAX_NAME => None,
            None => {
                all.queues.push(Arc::default());
                let id = all.queues.len() as u32;
                all.ids.insert(key, id);
                Some(id)
            }
        }
    }

    /// Makes this the reader that is told of messages, of those too that came when there was none.
    pub fn read(&self, id: u32, reader: Note) {
        let Some(queue) = self.get(id) else { return };
        let mut queue = lock(&queue);
        // An instance may register as often as it likes.
        queue.readers.retain(|known| !known.is_closed() && !known.same_channel(&reader));
        // Some may have been taken unasked.
        for _ in 0..std::mem::take(&mut queue.untold).min(queue.messages.len()) {
            let _ = reader.send(id);
        }
        if queue.readers.len() >= MAX_READERS {
            queue.readers.remove(0);
        }
        queue.readers.push(reader);
    }

    /// The queue of this name.
    pub fn resolve(&self, vm_id: &str, name: &str) -> Option<u32> {
        lock(&self.0).ids.get(&(vm_id.to_owned(), name.to_owned())).copied()
    }

    fn get(&self, id: u32) -> Option<Arc<Mutex<Queue>>> {
        lock(&self.0).queues.get((id as usize).checked_sub(1)?).cloned()
    }

    /// Puts a message at the end, and tells the reader.
    pub fn send(&self, id: u32, message: &[u8]) -> Result<(), NotSent> {
        let queue = self.get(id).ok_or(NotSent::Unknown)?;
        let mut queue = lock(&queue);
        if queue.bytes + cost(message) > MAX_BYTES {
            return Err(NotSent::Full);
        }
        queue.bytes += cost(message);
        queue.messages.push_back(Bytes::copy_from_slice(message));
        queue.tell(id);
        Ok(())
    }

    /// Tells a reader of a message that another one was told of, and has not heard of before it was gone.
    pub fn tell(&self, id: u32) {
        if let Some(queue) = self.get(id) {
            lock(&queue).tell(id);
        }
    }

    /// Puts a message back that was taken from the beginning and could not be given. Nobody is told: somebody was.
    pub fn put_back(&self, id: u32, message: Bytes) {
        let Some(queue) = self.get(id) else { return };
        let mut queue = lock(&queue);
        queue.bytes += cost(&message);
        queue.messages.push_front(message);
    }

    /// Takes the first message. The outer `None`: there is no such queue; the inner: it is empty.
    pub fn take(&self, id: u32) -> Option<Option<Bytes>> {
        let queue = self.get(id)?;
        let mut queue = lock(&queue);
        let message = queue.messages.pop_front();
        if let Some(message) = &message {
            queue.bytes -= cost(message);
        }
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;

    #[test]
    fn the_last_reader_that_is_there_is_told() {
        let queues = Queues::default();
        let ((first, mut first_inbox), (second, mut second_inbox)) = (unbounded_channel(), unbounded_channel());
        let id = queues.open("vm", "q").unwrap();
        queues.read(id, first);
        assert_eq!(queues.open("vm", "q"), Some(id));
        queues.read(id, second);
        assert_eq!(queues.resolve("vm", "q"), Some(id));
        assert_eq!(queues.resolve("other", "q"), None);
        queues.send(id, b"1").unwrap();
        assert_eq!((first_inbox.try_recv().ok(), second_inbox.try_recv().ok()), (None, Some(id)));
        drop(second_inbox);
        queues.send(id, b"2").unwrap();
        assert_eq!(first_inbox.try_recv().ok(), Some(id));
        assert_eq!(
            [queues.take(id), queues.take(id), queues.take(id)].map(|m| m.unwrap()),
            [Some(Bytes::from_static(b"1")), Some(Bytes::from_static(b"2")), None]
        );
        assert_eq!((queues.take(0), queues.take(9)), (None, None));
        assert_eq!(queues.send(9, b""), Err(NotSent::Unknown));
    }

    #[test]
    fn a_reader_is_told_of_what_was_there_before_it() {
        let queues = Queues::default();
        let id = queues.open("vm", "q").unwrap();
        for message in [b"1", b"2", b"3"] {
            queues.send(id, message).unwrap();
        }
        queues.take(id).unwrap().unwrap();
        let (reader, mut inbox) = unbounded_channel();
        queues.read(id, reader.clone());
        queues.read(id, reader);
        assert_eq!([inbox.try_recv().ok(), inbox.try_recv().ok(), inbox.try_recv().ok()], [Some(id), Some(id), None]);
        assert_eq!(lock(&queues.get(id).unwrap()).readers.len(), 1, "however often it registers");
    }

    #[test]
    fn it_does_not_grow_without_bound() {
        let queues = Queues::default();
        let id = queues.open("vm", "q").unwrap();
        let sent = (0..1_000_000).take_while(|_| queues.send(id, b"").is_ok()).count();
        assert_eq!(sent, MAX_BYTES / 64);
        assert_eq!(queues.send(id, b""), Err(NotSent::Full));
        queues.take(id).unwrap().unwrap();
        queues.send(id, b"").unwrap();
        let made = (0..5000).take_while(|i| queues.open("vm", &i.to_string()).is_some()).count();
        assert_eq!(made, MAX_QUEUES - 1);

        let queues = Queues::default();
        assert_eq!(queues.open("vm", &"n".repeat(MAX_NAME + 1)), None);
        let id = queues.open("vm", "q").unwrap();
        let (reader, mut inbox) = unbounded_channel();
        (0..3 * MAX_READERS).for_each(|_| queues.read(id, reader.clone()));
        queues.send(id, b"").unwrap();
        assert_eq!((inbox.try_recv().ok(), inbox.try_recv().ok()), (Some(id), None));
        assert_eq!(lock(&queues.get(id).unwrap()).readers.len(), 1, "who reads it already reads it once");
        let others: Vec<_> = (0..MAX_READERS + 5).map(|_| unbounded_channel()).collect();
        others.iter().for_each(|(other, _)| queues.read(id, other.clone()));
        assert_eq!(lock(&queues.get(id).unwrap()).readers.len(), MAX_READERS);
    }
}
