//! The engine that compiles and runs filters: one for the process, with one thread that ticks the clock by which calls are
//! bounded. Compiling is done by engines of their own, which are gone afterwards.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Once, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use wasmtime::{Cache, CacheConfig, Config, InstanceAllocationStrategy, Linker, Module, OptLevel};

use super::{clock, host::Host, hostcalls, joined};

/// The grain of the bound on a call's time.
pub(super) const TICK: Duration = Duration::from_millis(5);

/// The stack of a guest. Worker threads have more than this.
const GUEST_STACK: usize = 512 << 10;

/// The engine with all host functions.
pub struct Engine {
    engine: wasmtime::Engine,
    /// What it was made by, and those that compile.
    config: Config,
    linker: Linker<Host>,
    /// Compiled for the first instance.
    joining: OnceLock<Option<Module>>,
    /// Ends the ticking thread.
    stopped: Arc<AtomicBool>,
    /// Whether there is one.
    ticks: Once,
}

impl Engine {
    /// An engine that keeps compiled code in `cache_dir`, keyed by the module's content and the compiler's settings.
    pub fn new(cache_dir: Option<&Path>) -> wasmtime::Result<Arc<Engine>> {
        let mut config = Config::new();
        config
            .cranelift_opt_level(OptLevel::Speed)
            .epoch_interruption(true)
            .max_wasm_stack(GUEST_STACK)
            // Instances live long, so their tables are filled at once rather than checked at each indirect call.
            .table_lazy_init(false)
            .memory_may_move(false)
            .native_unwind_info(false)
            .allocation_strategy(InstanceAllocationStrategy::OnDemand);
        if let Some(dir) = cache_dir {
            let mut cache = CacheConfig::new();
            cache.with_directory(dir);
            match Cache::new(cache) {
                Ok(cache) => {
                    config.cache(Some(cache));
                }
                Err(e) => tracing::warn!("compiled filters are not kept in {}: {e:#}", dir.display()),
            }
        }
        let engine = wasmtime::Engine::new(&config)?;
        let mut linker = Linker::new(&engine);
        hostcalls::link(&mut linker)?;
        let (joining, stopped, ticks) = (OnceLock::new(), Arc::default(), Once::new());
        Ok(Arc::new(Engine { engine, config, linker, joining, stopped, ticks }))
    }

    /// Compiles a module, or takes it from the cache.
    #[expect(unsafe_code, reason = "machine code goes from one engine to another")]
    pub(super) fn compile(&self, bytes: &[u8]) -> wasmtime::Result<Module> {
        // A compiler keeps what it has worked with for the next time, tens of MiB: this one goes with its engine.
        let compiled = Module::new(&wasmtime::Engine::new(&self.config)?, bytes)?.serialize()?;
        // SAFETY: it was made just now, by this process, for the same configuration.
        unsafe { Module::deserialize(&self.engine, compiled) }
    }

    /// What stores are made for.
    pub(super) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.engine
    }

    /// The module that joins callbacks. None: it cannot be compiled, and each callback is made by itself.
    pub(super) fn joining(&self) -> Option<&Module> {
        self.joining.get_or_init(|| self.compile(joined::MODULE).ok()).as_ref()
    }

    /// Lets the clock tick from now on, if it does not yet: a proxy without filters is spared it.
    ///
    /// # Errors
    /// There can be no more threads.
    pub(super) fn tick(&self) -> io::Result<()> {
        let mut result = Ok(());
        self.ticks.call_once(|| {
            let (ticked, stop) = (self.engine.weak(), self.stopped.clone());
            let thread = thread::Builder::new().name("tollgate-epoch".into()).spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(TICK);
                    let Some(engine) = ticked.upgrade() else { return };
                    engine.increment_epoch();
                    clock::tick();
                }
            });
            result = thread.map(drop);
        });
        result
    }

    /// The host's functions.
    pub(super) fn linker(&self) -> &Linker<Host> {
        &self.linker
    }

    /// A time in ticks, rounded up, and one more: the first tick may be due at once.
    pub(super) fn ticks(time: Duration) -> u64 {
        u64::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX / 2).min(u64::MAX / 2) + 1
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}
