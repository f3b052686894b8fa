//! What is stored of an enrolment.

pub mod key_value;
pub mod record;
pub mod schedule;
