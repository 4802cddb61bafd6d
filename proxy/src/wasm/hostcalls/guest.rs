//! The guest's memory: reading what it points at, writing where it says, and returning data through its allocator.

use tollgate_abi::proxy_wasm::Status;
use wasmtime::Caller;

use crate::wasm::host::Host;

/// The guest's memory and the host's data, at the same time.
pub(super) fn split<'a>(caller: &'a mut Caller<'_, Host>) -> Result<(&'a mut [u8], &'a mut Host), Status> {
    // Without a memory the guest is still starting.
    let memory = caller.data().memory.ok_or(Status::InternalFailure)?;
    let (memory, host) = memory.data_and_store_mut(caller);
    host.hostcalls += 1;
    Ok((memory, host))
}

/// A range of the guest's memory.
pub(super) fn slice(memory: &[u8], ptr: i32, len: i32) -> Result<&[u8], Status> {
    let (ptr, len) = (ptr as u32 as usize, len as u32 as usize);
    memory.get(ptr..).and_then(|rest| rest.get(..len)).ok_or(Status::InvalidMemoryAccess)
}

/// A range of the guest's memory, for writing.
pub(super) fn slice_mut(memory: &mut [u8], ptr: i32, len: usize) -> Result<&mut [u8], Status> {
    memory.get_mut(ptr as u32 as usize..).and_then(|rest| rest.get_mut(..len)).ok_or(Status::InvalidMemoryAccess)
}

/// Writes a number.
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
    data.clear();
    let result = match fill(host, &mut data) {
        Ok(()) => hand_over(caller, data_out, size_out, &data)?,
        Err(status) => Err(status),
    };
    // Configuration and bodies may be large; what is kept for next time is not.
    if data.capacity() <= 64 << 10 {
        caller.data_mut().scratch = data;
    }
    Ok(status(result))
}

fn hand_over(
    caller: &mut Caller<'_, Host>,
    data_out: i32,
    size_out: i32,
    data: &[u8],
) -> wasmtime::Result<Result<(), Status>> {
    // An allocator must not be asked for nothing: some SDKs cannot do that. But AssemblyScript's, which gives the size of the
    // configuration for the address of the size, traps when it gets no address for an empty one.
    let ptr = match (data.is_empty() && size_out != 0, caller.data().allocate.clone()) {
        (true, _) => 0,
        (false, None) => return Ok(Err(Status::InternalFailure)),
        (false, Some(allocate)) => {
            let Ok(size) = u32::try_from(data.len()) else { return Ok(Err(Status::InternalFailure)) };
            match allocate.call(&mut *caller, size)? {
                0 if size > 0 => return Ok(Err(Status::InternalFailure)),
                ptr => ptr,
            }
        }
    };
    let write = |caller: &mut Caller<'_, Host>| {
        let (memory, host) = split(caller)?;
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
