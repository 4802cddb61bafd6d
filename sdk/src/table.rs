//! A map from ids that the host (or the executor) counts upwards: a sorted list. New ids go to its end, and what is taken
//! out is mostly young, so it is as fast as a tree where that matters, and far smaller as code.

use std::cell::{RefCell, RefMut};

/// What a cell holds. `RefCell::borrow_mut` would bring code into each module that formats an error: a module is not called
/// while it is in a call, so there is none.
///
/// # Panics
/// If it is borrowed.
pub(crate) fn borrow<T>(cell: &RefCell<T>) -> RefMut<'_, T> {
    match cell.try_borrow_mut() {
        Ok(borrowed) => borrowed,
        Err(_) => panic!("the module was called while it was in a call"),
    }
}

/// Values by ids.
#[derive(Debug)]
pub(crate) struct Table<T>(Vec<(u32, T)>);

impl<T> Table<T> {
    pub(crate) const fn new() -> Self {
        Table(Vec::new())
    }

    fn place(&self, id: u32) -> Result<usize, usize> {
        match self.0.last() {
            Some((last, _)) if *last < id => Err(self.0.len()),
            _ => self.0.binary_search_by_key(&id, |(known, _)| *known),
        }
    }

    pub(crate) fn insert(&mut self, id: u32, value: T) {
        match self.place(id) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (id, value)),
        }
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        let at = self.place(id).ok()?;
        Some(&mut self.0[at].1)
    }

    pub(crate) fn remove(&mut self, id: u32) -> Option<T> {
        let at = self.place(id).ok()?;
        Some(self.0.remove(at).1)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(u32, T)> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_what_it_is_given() {
        let mut table = Table::new();
        for id in [5, 7, 6, 7] {
            table.insert(id, id * 10);
        }
        assert_eq!(table.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [5, 6, 7]);
        assert_eq!((table.get_mut(6).copied(), table.get_mut(8)), (Some(60), None));
        assert_eq!((table.remove(5), table.remove(5)), (Some(50), None));
    }
}
