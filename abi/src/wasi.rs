//! The part of WASI preview 1 that modules built for `wasm32-wasip1` import: a few working functions, and stubs that
//! return an error. A filter has no files, no sockets and no arguments.

use crate::Function;

/// The import modules: the released name, and the name that older toolchains use.
pub const MODULES: [&str; 2] = ["wasi_snapshot_preview1", "wasi_unstable"];

/// Error numbers.
pub mod errno {
    #![allow(missing_docs)]
    pub const SUCCESS: i32 = 0;
    pub const BADF: i32 = 8;
    pub const FAULT: i32 = 21;
    pub const INVAL: i32 = 28;
    pub const NOENT: i32 = 44;
    pub const NOSYS: i32 = 52;
    pub const NOTDIR: i32 = 54;
    pub const NOTSUP: i32 = 58;
}

/// Clocks.
pub mod clock {
    #![allow(missing_docs)]
    pub const REALTIME: i32 = 0;
    pub const MONOTONIC: i32 = 1;
}

/// The working functions.
pub const HOSTCALLS: &[Function] = crate::function_table! {
    fn args_get(argv_out: i32, data_out: i32) -> i32;
    fn args_sizes_get(count_out: i32, size_out: i32) -> i32;
    fn environ_get(environ_out: i32, data_out: i32) -> i32;
    fn environ_sizes_get(count_out: i32, size_out: i32) -> i32;
    fn clock_res_get(clock: i32, out: i32) -> i32;
    fn clock_time_get(clock: i32, precision: i64, out: i32) -> i32;
    fn fd_write(fd: i32, iovs_ptr: i32, iovs_len: i32, size_out: i32) -> i32;
    fn poll_oneoff(subscriptions: i32, events_out: i32, count: i32, count_out: i32) -> i32;
    fn proc_exit(code: i32);
    fn random_get(ptr: i32, len: i32) -> i32;
    fn sched_yield() -> i32;
};

/// The functions that only return an error number.
pub const STUBS: &[(Function, i32)] = {
    use errno::*;
    macro_rules! stubs {
        ($($errno:ident: $($name:ident($($param:ident: $ty:ident),*))*;)*) => {
            &[$($((Function {
                name: stringify!($name),
                params: &[$((stringify!($param), $crate::function_table!(@ty $ty))),*],
                result: Some($crate::Ty::I32),
            }, $errno),)*)*]
        };
    }
    stubs! {
        // A libc enumerates its directories until it gets this error.
        BADF: fd_prestat_get(fd: i32, out: i32)
            fd_close(fd: i32)
            fd_fdstat_get(fd: i32, out: i32)
            fd_fdstat_set_flags(fd: i32, flags: i32)
            fd_fdstat_set_rights(fd: i32, base: i64, inheriting: i64)
            fd_filestat_get(fd: i32, out: i32)
            fd_read(fd: i32, iovs_ptr: i32, iovs_len: i32, size_out: i32)
            fd_seek(fd: i32, offset: i64, whence: i32, out: i32)
            fd_tell(fd: i32, out: i32);
        NOSYS: fd_prestat_dir_name(fd: i32, path_ptr: i32, path_len: i32);
        NOTDIR: fd_readdir(fd: i32, ptr: i32, len: i32, cookie: i64, size_out: i32);
        NOENT: path_open(fd: i32, dirflags: i32, path_ptr: i32, path_len: i32, oflags: i32, rights: i64, inheriting: i64, flags: i32, fd_out: i32);
        NOTSUP: fd_advise(fd: i32, offset: i64, len: i64, advice: i32)
            fd_allocate(fd: i32, offset: i64, len: i64)
            fd_datasync(fd: i32)
            fd_filestat_set_size(fd: i32, size: i64)
            fd_filestat_set_times(fd: i32, atim: i64, mtim: i64, flags: i32)
            fd_pread(fd: i32, iovs_ptr: i32, iovs_len: i32, offset: i64, size_out: i32)
            fd_pwrite(fd: i32, iovs_ptr: i32, iovs_len: i32, offset: i64, size_out: i32)
            fd_renumber(from: i32, to: i32)
            fd_sync(fd: i32)
            path_create_directory(fd: i32, path_ptr: i32, path_len: i32)
            path_filestat_get(fd: i32, flags: i32, path_ptr: i32, path_len: i32, out: i32)
            path_filestat_set_times(fd: i32, flags: i32, path_ptr: i32, path_len: i32, atim: i64, mtim: i64, times: i32)
            path_link(old_fd: i32, flags: i32, old_ptr: i32, old_len: i32, new_fd: i32, new_ptr: i32, new_len: i32)
            path_readlink(fd: i32, path_ptr: i32, path_len: i32, ptr: i32, len: i32, size_out: i32)
            path_remove_directory(fd: i32, path_ptr: i32, path_len: i32)
            path_rename(old_fd: i32, old_ptr: i32, old_len: i32, new_fd: i32, new_ptr: i32, new_len: i32)
            path_symlink(old_ptr: i32, old_len: i32, fd: i32, new_ptr: i32, new_len: i32)
            path_unlink_file(fd: i32, path_ptr: i32, path_len: i32)
            proc_raise(signal: i32)
            sock_accept(fd: i32, flags: i32, fd_out: i32)
            sock_recv(fd: i32, iovs_ptr: i32, iovs_len: i32, flags: i32, size_out: i32, flags_out: i32)
            sock_send(fd: i32, iovs_ptr: i32, iovs_len: i32, flags: i32, size_out: i32)
            sock_shutdown(fd: i32, how: i32);
    }
};
