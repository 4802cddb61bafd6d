//! Finds cycles: strongly connected components of more than one node (Tarjan).

use std::collections::{BTreeMap, BTreeSet};

/// Returns the groups of nodes that reach each other, each sorted.
pub fn cycles(edges: impl IntoIterator<Item = (String, String)>) -> Vec<Vec<String>> {
    let mut next: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (from, to) in edges {
        next.entry(to.clone()).or_default();
        next.entry(from).or_default().insert(to);
    }
    let names: Vec<_> = next.keys().cloned().collect();
    let number: BTreeMap<_, _> = names.iter().enumerate().map(|(i, n)| (n.clone(), i)).collect();
    let next: Vec<Vec<usize>> = next.values().map(|to| to.iter().map(|n| number[n]).collect()).collect();
    let mut tarjan = Tarjan {
        next: &next,
        index: vec![None; names.len()],
        low: vec![0; names.len()],
        on: vec![false; names.len()],
        stack: vec![],
        count: 0,
        found: vec![],
    };
    for node in 0..names.len() {
        if tarjan.index[node].is_none() {
            tarjan.visit(node);
        }
    }
    let mut found: Vec<Vec<String>> = tarjan
        .found
        .into_iter()
        .filter(|cycle| cycle.len() > 1)
        .map(|cycle| {
            let mut cycle: Vec<_> = cycle.into_iter().map(|n| names[n].clone()).collect();
            cycle.sort();
            cycle
        })
        .collect();
    found.sort();
    found
}

struct Tarjan<'a> {
    next: &'a [Vec<usize>],
    index: Vec<Option<usize>>,
    low: Vec<usize>,
    on: Vec<bool>,
    stack: Vec<usize>,
    count: usize,
    found: Vec<Vec<usize>>,
}

impl Tarjan<'_> {
    fn visit(&mut self, node: usize) {
        let index = self.count;
        self.count += 1;
        self.index[node] = Some(index);
        self.low[node] = index;
        self.stack.push(node);
        self.on[node] = true;
        for &to in &self.next[node] {
            match self.index[to] {
                None => {
                    self.visit(to);
                    self.low[node] = self.low[node].min(self.low[to]);
                }
                Some(at) if self.on[to] => self.low[node] = self.low[node].min(at),
                Some(_) => {}
            }
        }
        if self.low[node] == index {
            let from = self.stack.iter().position(|&n| n == node).expect("the node is on the stack");
            let cycle = self.stack.split_off(from);
            for &n in &cycle {
                self.on[n] = false;
            }
            self.found.push(cycle);
        }
    }
}
