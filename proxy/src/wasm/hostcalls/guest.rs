//! Access to the guest's memory: reading arguments, writing results, and returning data through its allocator.

use tollgate_abi::proxy_wasm::Status;
use wasmtime::Caller;

use crate::wasm::host::Host;

/// Borrows the guest's memory and the host's state together. Called exactly once per host call, because it counts the
/// call.
#[inline]
pub(super) fn split<'a>(caller: &'a mut Caller<'_, Host>) -> Result<(&'a mut [u8], &'a mut Host), Status> {
    caller.data_mut().hostcalls += 1;
    split_again(caller)
}

/// Like [`split`], without counting.
#[inline]
fn split_again<'a>(caller: &'a mut Caller<'_, Host>) -> Result<(&'a mut [u8], &'a mut Host), Status> {
    // Without a memory, the guest is still starting.
    let memory = caller.data().memory.ok_or(Status::InternalFailure)?;
    Ok(memory.data_and_store_mut(caller))
}

/// Maximum bytes of an argument. A call cannot be interrupted inside the host, so no function may take long.
const MAX_INPUT: usize = 16 << 20;

/// Maximum bytes of a lookup key: hashing is slower than copying.
const MAX_KEY: usize = 64 << 10;

/// A range of the guest's memory, up to the maximum size of an argument.
#[inline]
pub(super) fn slice(memory: &[u8], ptr: i32, len: i32) -> Result<&[u8], Status> {
    bounded(memory, ptr, len, MAX_INPUT)
}

/// A range of the guest's memory that holds a lookup key.
#[inline]
pub(super) fn key(memory: &[u8], ptr: i32, len: i32) -> Result<&[u8], Status> {
    bounded(memory, ptr, len, MAX_KEY)
}

#[inline]
fn bounded(memory: &[u8], ptr: i32, len: i32, most: usize) -> Result<&[u8], Status> {
    let range = range(memory, ptr, len)?;
    if range.len() > most { Err(Status::BadArgument) } else { Ok(range) }
}

/// A range of the guest's memory of any length, for functions with their own limit.
#[inline]
pub(super) fn range(memory: &[u8], ptr: i32, len: i32) -> Result<&[u8], Status> {
    let (ptr, len) = (ptr as u32 as usize, len as u32 as usize);
    memory.get(ptr..).and_then(|rest| rest.get(..len)).ok_or(Status::InvalidMemoryAccess)
}

/// A writable range of the guest's memory.
#[inline]
pub(super) fn slice_mut(memory: &mut [u8], ptr: i32, len: usize) -> Result<&mut [u8], Status> {
    memory.get_mut(ptr as u32 as usize..).and_then(|rest| rest.get_mut(..len)).ok_or(Status::InvalidMemoryAccess)
}

/// Writes a little-endian 32-bit number.
#[inline]
pub(super) fn write_u32(memory: &mut [u8], ptr: i32, value: u32) -> Result<(), Status> {
    slice_mut(memory, ptr, 4)?.copy_from_slice(&value.to_le_bytes());
    Ok(())
}

/// Writes a little-endian 64-bit number.
pub(super) fn write_u64(memory: &mut [u8], ptr: i32, value: u64) -> Result<(), Status> {
    slice_mut(memory, ptr, 8)?.copy_from_slice(&value.to_le_bytes());
    Ok(())
}

/// Converts a result to a status code.
pub(super) fn status(result: Result<(), Status>) -> i32 {
    result.err().unwrap_or(Status::Ok) as i32
}

/// Converts a result to the fast lane's form: a number, or the negated status.
pub(super) fn number(result: Result<i32, Status>) -> i32 {
    result.unwrap_or_else(|status| -(status as i32))
}

/// Returns data to the guest: allocates guest memory, copies the data, and writes its address and size to the given
/// places. `fill` first appends the data to a buffer, because the allocator may change the host state that it is read
/// from.
pub(super) fn give(
    caller: &mut Caller<'_, Host>,
    data_out: i32,
    size_out: i32,
    fill: impl FnOnce(&mut Host, &mut Vec<u8>) -> Result<(), Status>,
) -> wasmtime::Result<i32> {
    let host = caller.data_mut();
    let mut data = std::mem::take(&mut host.scratch);
    let filled = fill(host, &mut data);
    hand_over(caller, data_out, size_out, data, filled)
}

/// Like [`give`], for data that depends on the guest's memory.
pub(super) fn answer(
    caller: &mut Caller<'_, Host>,
    data_out: i32,
    size_out: i32,
    fill: impl FnOnce(&[u8], &mut Host, &mut Vec<u8>) -> Result<(), Status>,
) -> wasmtime::Result<i32> {
    let mut data = std::mem::take(&mut caller.data_mut().scratch);
    let filled = split(caller).and_then(|(memory, host)| fill(memory, host, &mut data));
    hand_over(caller, data_out, size_out, data, filled)
}

fn hand_over(
    caller: &mut Caller<'_, Host>,
    data_out: i32,
    size_out: i32,
    mut data: Vec<u8>,
    filled: Result<(), Status>,
) -> wasmtime::Result<i32> {
    let given = match filled {
        Ok(()) => copy_out(caller, data_out, size_out, &data)?,
        Err(status) => Err(status),
    };
    // Configurations and bodies may be large; only a small buffer is kept for reuse.
    if data.capacity() <= 64 << 10 {
        data.clear();
        caller.data_mut().scratch = data;
    }
    Ok(status(given))
}

fn copy_out(
    caller: &mut Caller<'_, Host>,
    data_out: i32,
    size_out: i32,
    data: &[u8],
) -> wasmtime::Result<Result<(), Status>> {
    // The allocator must not be called with size 0, which some SDKs do not support. But AssemblyScript's SDK, which
    // passes the configuration's size where the address for the size belongs, traps if it gets no address for an empty
    // configuration.
    let ptr = if data.is_empty() && size_out != 0 {
        0
    } else {
        let Ok(size) = u32::try_from(data.len()) else { return Ok(Err(Status::InternalFailure)) };
        // Taken out during the call: cloning it costs as much as the call itself.
        let Some(allocate) = caller.data_mut().allocate.take() else { return Ok(Err(Status::InternalFailure)) };
        let allocated = allocate.call(&mut *caller, size);
        caller.data_mut().allocate = Some(allocate);
        match allocated? {
            0 if size > 0 => return Ok(Err(Status::InternalFailure)),
            ptr => ptr,
        }
    };
    let write = |caller: &mut Caller<'_, Host>| {
        let (memory, host) = split_again(caller)?;
        host.copied += data.len() as u64;
        slice_mut(memory, ptr as i32, data.len())?.copy_from_slice(data);
        write_u32(memory, data_out, ptr)?;
        write_u32(memory, size_out, data.len() as u32)
    };
    Ok(write(caller))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oversized_arguments_are_rejected() {
        let memory = vec![0; MAX_INPUT + 1];
        assert_eq!(slice(&memory, 1, MAX_INPUT as i32).map(<[u8]>::len), Ok(MAX_INPUT));
        assert_eq!(slice(&memory, 0, MAX_INPUT as i32 + 1), Err(Status::BadArgument));
        assert_eq!(key(&memory, 0, MAX_KEY as i32).map(<[u8]>::len), Ok(MAX_KEY));
        assert_eq!(key(&memory, 0, MAX_KEY as i32 + 1), Err(Status::BadArgument));
        assert_eq!(range(&memory, 0, MAX_INPUT as i32 + 1).map(<[u8]>::len), Ok(MAX_INPUT + 1));
    }

    #[test]
    fn ranges_outside_memory_are_rejected() {
        let mut memory = vec![0; 64];
        for (ptr, len) in [(0, 65), (64, 1), (65, 0), (-1, 1), (1, -1), (i32::MIN, i32::MIN), (-4, 8)] {
            assert_eq!(slice(&memory, ptr, len), Err(Status::InvalidMemoryAccess), "{ptr} {len}");
        }
        assert_eq!(slice(&memory, 64, 0), Ok(&[][..]));
        assert_eq!(write_u32(&mut memory, 61, 1), Err(Status::InvalidMemoryAccess));
        assert_eq!(write_u32(&mut memory, 60, 1), Ok(()));
    }
}
