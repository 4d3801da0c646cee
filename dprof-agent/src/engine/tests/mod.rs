//! The engine as a whole: on scripts of events ([`stage`]) in a toy protocol ([`toy`]), and on conversations of every
//! odd mode of the real ones ([`dialogue`]) with events taken out ([`odd_modes`]).

mod capture;
mod dialogue;
mod fuzz;
mod identity;
mod limits;
mod linking;
mod links;
mod losses;
mod odd_modes;
mod pairing;
mod stage;
mod timing;
mod toy;
mod watch;
