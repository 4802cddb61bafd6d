//! Times the pieces of a request's path: `cargo bench -p tollgate --bench criterion`. Comparable only on one quiet machine;
//! continuous integration uses `instructions.rs`.

mod pieces;

use criterion::{Criterion, criterion_group, criterion_main};

// As in the proxy.
#[global_allocator]
static ALLOCATOR: tollgate::alloc::Mimalloc = tollgate::alloc::Mimalloc;

fn benches(c: &mut Criterion) {
    for mut piece in pieces::all() {
        c.bench_function(piece.name, |b| b.iter(&mut piece.run));
    }
}

criterion_group!(all, benches);
criterion_main!(all);
