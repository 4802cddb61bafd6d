//! A map from ids that the host (or the executor) counts upwards, kept as a sorted list. New ids are appended, and
//! mostly recent ids are removed, so it is as fast as a tree at realistic sizes and its code is much smaller.

use std::{
    cell::{RefCell, RefMut},
    rc::Rc,
};

/// Borrows a cell's value. Unlike `RefCell::borrow_mut`, it adds no code for formatting an error to each module. The
/// host never calls a module during a call, so borrows do not conflict.
///
/// # Panics
/// If the cell is already borrowed.
pub(crate) fn borrow<T>(cell: &RefCell<T>) -> RefMut<'_, T> {
    match cell.try_borrow_mut() {
        Ok(borrowed) => borrowed,
        Err(_) => panic!("the module was called during another call"),
    }
}

/// Values by id.
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

/// The filters of an instance by root context. The common case of a single one needs no search.
#[derive(Debug)]
pub(crate) struct Roots<F> {
    first: Option<(u32, Rc<F>)>,
    others: Vec<(u32, Rc<F>)>,
}

impl<F> Roots<F> {
    pub(crate) const fn new() -> Self {
        Roots { first: None, others: Vec::new() }
    }

    /// Inserts a root's filter, replacing an earlier one.
    pub(crate) fn set(&mut self, root: u32, filter: Rc<F>) {
        if let Some((_, old)) = self.first.iter_mut().chain(&mut self.others).find(|(of, _)| *of == root) {
            *old = filter;
        } else if self.first.is_none() {
            self.first = Some((root, filter));
        } else {
            self.others.push((root, filter));
        }
    }

    /// Returns the filter of a root, or else the first one.
    pub(crate) fn get(&self, root: u32) -> Option<&Rc<F>> {
        let (first, filter) = self.first.as_ref()?;
        if self.others.is_empty() || *first == root {
            return Some(filter);
        }
        let other = self.others.iter().find(|(of, _)| *of == root);
        Some(other.map_or(filter, |(_, other)| other))
    }

    pub(crate) fn remove(&mut self, root: u32) -> Option<Rc<F>> {
        if self.first.as_ref().is_some_and(|(of, _)| *of == root) {
            let next = (!self.others.is_empty()).then(|| self.others.remove(0));
            return std::mem::replace(&mut self.first, next).map(|(_, filter)| filter);
        }
        let at = self.others.iter().position(|(of, _)| *of == root)?;
        Some(self.others.remove(at).1)
    }

    /// Reports whether there is only one filter.
    pub(crate) fn is_alone(&self) -> bool {
        self.others.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_without_a_filter_falls_back_to_the_first() {
        let mut roots = Roots::new();
        let get = |roots: &Roots<char>, root| roots.get(root).map(|filter| **filter);
        assert_eq!((get(&roots, 1), roots.is_alone()), (None, true));
        for (root, filter) in [(1, 'a'), (2, 'b'), (3, 'c'), (1, 'd'), (3, 'e')] {
            roots.set(root, Rc::new(filter));
        }
        assert_eq!([1, 2, 3, 4].map(|root| get(&roots, root)), ['d', 'b', 'e', 'd'].map(Some));
        assert_eq!((roots.remove(1).as_deref(), roots.remove(1), roots.is_alone()), (Some(&'d'), None, false));
        assert_eq!([1, 2, 3].map(|root| get(&roots, root)), ['b', 'b', 'e'].map(Some));
        assert_eq!((roots.remove(3).as_deref(), roots.is_alone(), get(&roots, 3)), (Some(&'e'), true, Some('b')));
        assert_eq!((roots.remove(2).as_deref(), get(&roots, 2)), (Some(&'b'), None));
    }

    #[test]
    fn insert_get_and_remove_work_by_id() {
        let mut table = Table::new();
        for id in [5, 7, 6, 7] {
            table.insert(id, id * 10);
        }
        assert_eq!(table.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [5, 6, 7]);
        assert_eq!((table.get_mut(6).copied(), table.get_mut(8)), (Some(60), None));
        assert_eq!((table.remove(5), table.remove(5)), (Some(50), None));
    }
}
