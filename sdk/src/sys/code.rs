//! gRPC status codes.
#![allow(missing_docs)]

macro_rules! codes {
    ($($name:ident = $code:literal, $text:literal;)*) => {
        $(pub const $name: u32 = $code;)*

        /// Returns a status code's name in lower case; `other` for an unknown code.
        pub(crate) fn name(code: u32) -> &'static str {
            match code {
                $($code => $text,)*
                _ => "other",
            }
        }
    };
}
codes! {
    OK = 0, "ok";
    CANCELLED = 1, "cancelled";
    UNKNOWN = 2, "unknown";
    INVALID_ARGUMENT = 3, "invalid_argument";
    DEADLINE_EXCEEDED = 4, "deadline_exceeded";
    NOT_FOUND = 5, "not_found";
    ALREADY_EXISTS = 6, "already_exists";
    PERMISSION_DENIED = 7, "permission_denied";
    RESOURCE_EXHAUSTED = 8, "resource_exhausted";
    FAILED_PRECONDITION = 9, "failed_precondition";
    ABORTED = 10, "aborted";
    OUT_OF_RANGE = 11, "out_of_range";
    UNIMPLEMENTED = 12, "unimplemented";
    INTERNAL = 13, "internal";
    UNAVAILABLE = 14, "unavailable";
    DATA_LOSS = 15, "data_loss";
    UNAUTHENTICATED = 16, "unauthenticated";
}
