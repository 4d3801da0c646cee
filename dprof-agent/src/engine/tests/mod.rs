//! The engine as a whole, on scripts of events ([`stage`]) in a toy protocol ([`toy`]).

mod fuzz;
mod identity;
mod limits;
mod linking;
mod losses;
mod pairing;
mod stage;
mod timing;
mod toy;
