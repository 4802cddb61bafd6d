//! The guest's memory: reading what it points at, writing where it says, and returning data through its allocator.

use tollgate_abi::proxy_wasm::Status;
use wasmtime::Caller;

use crate::wasm::host::Host;

/// The guest's memory and the host's data, at the same time. Once for each function that the guest calls, as it is counted.
#[inline]
pub(super) fn split<'a>(caller: &'a mut Caller<'_, Host>) -> Result<(&'a mut [u8], &'a mut Host), Status> {
    caller.data_mut().hostcalls += 1;
    split_again(caller)
}

/// The same, not counted.
#[inline]
fn split_again<'a>(caller: &'a mut Caller<'_, Host>) -> Result<(&'a mut [u8], &'a mut Host), Status> {
    // Without a memory the guest is still starting.
    let memory = caller.data().memory.ok_or(Status::InternalFailure)?;
    Ok(memory.data_and_store_mut(caller))
}

/// Bytes that a function takes in one piece. A call cannot be interrupted in the host, so none may take long.
const MAX_INPUT: usize = 16 << 20;

/// Bytes of what is looked up: hashing is slower than copying.
const MAX_KEY: usize = 64 << 10;

/// A range of the guest's memory, no longer than a function may take.
#[inline]
pub(super) fn slice(memory: &[u8], ptr: i32, len: i32) -> Result<&[u8], Status> {
    bounded(memory, ptr, len, MAX_INPUT)
}

/// A range of the guest's memory that is a key of something.
#[inline]
pub(super) fn key(memory: &[u8], ptr: i32, len: i32) -> Result<&[u8], Status> {
    bounded(memory, ptr, len, MAX_KEY)
}

#[inline]
fn bounded(memory: &[u8], ptr: i32, len: i32, most: usize) -> Result<&[u8], Status> {
    let range = range(memory, ptr, len)?;
    if range.len() > most { Err(Status::BadArgument) } else { Ok(range) }
}

/// A range of the guest's memory of any length, for a function that has a bound of its own.
#[inline]
pub(super) fn range(memory: &[u8], ptr: i32, len: i32) -> Result<&[u8], Status> {
    let (ptr, len) = (ptr as u32 as usize, len as u32 as usize);
    memory.get(ptr..).and_then(|rest| rest.get(..len)).ok_or(Status::InvalidMemoryAccess)
}

/// A range of the guest's memory, for writing.
#[inline]
pub(super) fn slice_mut(memory: &mut [u8], ptr: i32, len: usize) -> Result<&mut [u8], Status> {
    memory.get_mut(ptr as u32 as usize..).and_then(|rest| rest.get_mut(..len)).ok_or(Status::InvalidMemoryAccess)
}

/// Writes a number.
#[inline]
pub(super) fn write_u32(memory: &mut [u8], ptr: i32, value: u32) -> Result<(), Status> {
    slice_mut(memory, ptr, 4)?.copy_from_slice(&value.to_le_bytes());
    Ok(())
}

/// Writes a number.
pub(super) fn write_u64(memory: &mut [u8], ptr: i32, value: u64) -> Result<(), Status> {
    slice_mut(memory, ptr, 8)?.copy_from_slice(&value.to_le_bytes());
    Ok(())
}

/// A result as the guest gets it.
pub(super) fn status(result: Result<(), Status>) -> i32 {
    result.err().unwrap_or(Status::Ok) as i32
}

/// A number or a status as the fast lane gives it: the status negated.
pub(super) fn number(result: Result<i32, Status>) -> i32 {
    result.unwrap_or_else(|status| -(status as i32))
}

/// Returns data: memory from the guest's allocator, its address and length written to where the guest wants them. `fill`
/// appends the data to a buffer first, because the allocator may use what the data is read from (the host's state).
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

/// The same, if the data depends on something in the guest's memory.
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
    // Configuration and bodies may be large; what is kept for next time is not.
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
    // An allocator must not be asked for nothing: some SDKs cannot do that. But AssemblyScript's, which gives the size of the
    // configuration for the address of the size, traps when it gets no address for an empty one.
    let ptr = if data.is_empty() && size_out != 0 {
        0
    } else {
        let Ok(size) = u32::try_from(data.len()) else { return Ok(Err(Status::InternalFailure)) };
        // Taken out while it runs: a copy of it costs as much as the call.
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
    fn no_function_takes_more_than_it_can_work_on_in_short_time() {
        let memory = vec![0; MAX_INPUT + 1];
        assert_eq!(slice(&memory, 1, MAX_INPUT as i32).map(<[u8]>::len), Ok(MAX_INPUT));
        assert_eq!(slice(&memory, 0, MAX_INPUT as i32 + 1), Err(Status::BadArgument));
        assert_eq!(key(&memory, 0, MAX_KEY as i32).map(<[u8]>::len), Ok(MAX_KEY));
        assert_eq!(key(&memory, 0, MAX_KEY as i32 + 1), Err(Status::BadArgument));
        assert_eq!(range(&memory, 0, MAX_INPUT as i32 + 1).map(<[u8]>::len), Ok(MAX_INPUT + 1));
    }

    #[test]
    fn no_range_outside_of_memory_is_given() {
        let mut memory = vec![0; 64];
        for (ptr, len) in [(0, 65), (64, 1), (65, 0), (-1, 1), (1, -1), (i32::MIN, i32::MIN), (-4, 8)] {
            assert_eq!(slice(&memory, ptr, len), Err(Status::InvalidMemoryAccess), "{ptr} {len}");
        }
        assert_eq!(slice(&memory, 64, 0), Ok(&[][..]));
        assert_eq!(write_u32(&mut memory, 61, 1), Err(Status::InvalidMemoryAccess));
        assert_eq!(write_u32(&mut memory, 60, 1), Ok(()));
    }
}
