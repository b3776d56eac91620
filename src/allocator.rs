//! How the program's allocator treats memory between training steps.

/// `mi_option_purge_delay` of mimalloc's header, which its crate does not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// Longer than most steps: with 1 s, one LoRA step a second faulted its pages in again (18,844 faults instead of 442).
const MILLISECONDS: std::ffi::c_long = 10_000;

/// Lets mimalloc hand memory back to the system after ten seconds instead of 10 ms: a training step frees what the next
/// one takes again, and each page that went back in between is cleared and mapped anew. `MIMALLOC_PURGE_DELAY` wins.
pub fn keep_pages() {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: an option's number and a value; mimalloc checks the number and stores the value.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, MILLISECONDS) };
    }
}
