//! The ledger on a PostgreSQL database.

pub mod database;
