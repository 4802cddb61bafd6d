//! What the pieces of a request's way take: `cargo bench -p tollgate --bench criterion`. Comparable on one quiet machine only;
//! what continuous integration goes by is `instructions.rs`.

mod pieces;

use criterion::{Criterion, criterion_group, criterion_main};

// As in the proxy.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn benches(c: &mut Criterion) {
    for mut piece in pieces::all() {
        c.bench_function(piece.name, |b| b.iter(&mut piece.run));
    }
}

criterion_group!(all, benches);
criterion_main!(all);
