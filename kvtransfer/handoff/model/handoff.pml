/* The KV handoff, as a Spin model: one decode worker D, two attempts of one request, each with a prefill worker
 * of its own (P[1], P[2]), a router that plans the second attempt when the first is lost, and a neighbour that takes
 * and uses D's blocks whenever they are free. Messages may be lost, duplicated and reordered. P[1] may die at
 * any step, or hang and come back after everybody gave it up.
 *
 * What it shows (docs/handoff-model.md has the states beside the code's):
 *   safety    no byte of a transfer lands in a block that the transfer does not hold (assert in Deliver and Neighbour);
 *             D activates only when every cell was received and verified (assert in Activate);
 *             D frees only when no receive of its own is pending (assert in Free);
 *             an attempt is never activated after a newer one was reserved.
 *   liveness  every transfer ends and every block is free in the end (ltl all_free);
 *             an undisturbed request is activated (ltl served, with -DCALM).
 *
 * tests/kvtransfer/model_test.sh runs all of it. By hand (-w: Spin's generated C is not warning-free):
 *   spin -a handoff.pml && cc -w -O2 -DSAFETY -DNOCLAIM -o pan pan.c && ./pan -m100000        safety
 *   spin -DLIVE -a handoff.pml && cc -w -O2 -DNFAIR=3 -o pan pan.c && ./pan -a -f -m100000 -N all_free
 *   spin -DCALM -a handoff.pml && cc -w -O2 -DNFAIR=3 -o pan pan.c && ./pan -a -f -m100000 -N served
 *
 * -DLIVE leaves out the neighbour and the process that comes back from the dead: neither can hold a block of a
 * transfer, and without them fair cycles can be searched exhaustively in seconds.
 *
 * -DMUTANT=n plants a fault that must be found: 1 free before the own receive ended, 2 counting instead of
 * coverage, 3 attempt (transfer id) ignored, 4 activation without verification of the last cell, 5 duplicate Final
 * accepted after the transfer was closed.
 */

#ifndef MUTANT
#define MUTANT 0
#endif

#define CELLS 2
#define ATTEMPTS 2
#define NEIGHBOUR 9   /* owner and content of a block in the neighbour's hands */

mtype = { BIND, OFFER, FINAL, ACK, COMMIT, NACK, CANCEL, CANCEL_ACK };
mtype = { RESERVED, BOUND, RECEIVING, ACTIVE, ABORTING, FREED };       /* D, per attempt */
mtype = { QUEUED, SENDING, FINAL_SENT, COMMITTED, ABORTED, DEAD };     /* P, per attempt */

/* type, attempt (stands for the unguessable transfer id), cell */
chan to_d = [1] of { mtype, byte, byte };
chan to_p[3] = [1] of { mtype, byte };

mtype d_state[3];
mtype p_state[3];
bool reserved[3], p_started[3];
byte got[3];             /* bit per cell: received and verified */
#if MUTANT == 2
byte count[3];           /* of offers that came */
#endif
bool pending[6];         /* [attempt * CELLS + cell]: a receive of D is under way */
byte sent_by[6];         /* whose bytes it brings */
byte owner[2];           /* of each block: 0 free, attempt, or NEIGHBOUR */
byte content[2];
byte activated = 0;
bool p_alive[3];
bool cancel_asked[3];

#define ALL ((1 << CELLS) - 1)
#define PENDING(a) (pending[(a) * CELLS] || pending[(a) * CELLS + 1])
#define OPEN(a) (d_state[a] == RESERVED || d_state[a] == BOUND || d_state[a] == RECEIVING)

/* The network loses by choosing not to send, duplicates because P resends everything until it is answered, and reorders
 * because P sends in any order. A full channel loses too. */
inline SendToD(type, a, c) {
  if
  :: nfull(to_d) -> to_d!type(a, c)
  :: full(to_d) -> skip
#ifndef CALM
  :: skip
#endif
  fi
}
inline SendToP(a, type) {
  if
  :: nfull(to_p[a]) -> to_p[a]!type(a)
  :: full(to_p[a]) -> skip
#ifndef CALM
  :: skip
#endif
  fi
}

inline Free(a) {
  atomic {
#if MUTANT != 1
    assert(!PENDING(a));
#endif
    if :: owner[0] == a -> owner[0] = 0; content[0] = 0 :: else -> skip fi;
    if :: owner[1] == a -> owner[1] = 0; content[1] = 0 :: else -> skip fi;
#if MUTANT != 5
    got[a] = 0;
#endif
    d_state[a] = FREED
  }
}

inline Activate(a) {
  atomic {
    assert(content[0] == a && content[1] == a);   /* every cell holds this attempt's bytes */
    assert(a == 2 || d_state[2] == 0);              /* never an attempt older than one that D knows */
    activated = a;
    d_state[a] = ACTIVE
  }
}

/* One of D's receives ends: the bytes are in the block now, whoever holds it. */
inline Deliver(a, c) {
  atomic {
    pending[a * CELLS + c] = false;
    assert(owner[c] == a);                          /* no foreign bytes, ever */
    content[c] = sent_by[a * CELLS + c];
    sent_by[a * CELLS + c] = 0;                     /* dead from here on: fewer states */
    if
    :: OPEN(a) -> got[a] = got[a] | (1 << c)
    :: else -> skip
    fi
  }
}

active proctype D() {
  byte a, c, src;
  mtype type;
end:
  do
  /* Reserve from the router: idempotent, takes every block or none. */
  :: atomic { reserved[1] && d_state[1] == 0 && owner[0] == 0 && owner[1] == 0 ->
       owner[0] = 1; owner[1] = 1; d_state[1] = RESERVED }
  :: atomic { reserved[2] && d_state[2] == 0 && !OPEN(1) && owner[0] == 0 && owner[1] == 0 ->
       owner[0] = 2; owner[1] = 2; d_state[2] = RESERVED }
  /* A newer attempt ends the older one. */
  :: atomic { reserved[2] && d_state[2] == 0 && OPEN(1) -> d_state[1] = ABORTING }

  /* A message is handled in one step: the code's step() is one call on one thread. */
  :: atomic { nempty(to_d) -> to_d?type(a, c); src = a;
#if MUTANT == 3
     /* The newest open transfer takes whatever comes. */
     if :: OPEN(2) -> a = 2 :: else -> skip fi;
#endif
     if
     :: type == BIND ->
        if
        :: d_state[a] == RESERVED -> d_state[a] = BOUND; SendToP(a, ACK)
        :: d_state[a] == BOUND || d_state[a] == RECEIVING -> SendToP(a, ACK)
        :: d_state[a] == ACTIVE -> SendToP(a, COMMIT)
        :: d_state[a] == ABORTING || d_state[a] == FREED || d_state[a] == 0 -> SendToP(a, NACK)
        fi
     :: type == OFFER ->
        if
        :: d_state[a] == BOUND || d_state[a] == RECEIVING ->
           d_state[a] = RECEIVING;
           if
           :: (got[a] & (1 << c)) == 0 && !pending[a * CELLS + c] ->
              pending[a * CELLS + c] = true; sent_by[a * CELLS + c] = src;
#if MUTANT == 2
              count[a]++
#endif
           :: else ->
#if MUTANT == 2
              if :: count[a] < CELLS -> count[a]++ :: else -> skip fi;   /* a duplicate counts as progress */
#endif
              SendToP(a, ACK)                   /* known already: acknowledged again */
           fi
        :: d_state[a] == ACTIVE -> SendToP(a, COMMIT)
        :: else -> SendToP(a, NACK)             /* tombstone: the payload is dropped */
        fi
     :: type == FINAL ->
        if
#if MUTANT == 2
        :: d_state[a] == RECEIVING && count[a] >= CELLS && !PENDING(a) -> Activate(a); SendToP(a, COMMIT)
#elif MUTANT == 4
        :: d_state[a] == RECEIVING && (got[a] & 1) -> Activate(a); SendToP(a, COMMIT)
#elif MUTANT == 5
        :: (d_state[a] == RECEIVING && got[a] == ALL) || (d_state[a] == FREED && got[a] == ALL) ->
             Activate(a); SendToP(a, COMMIT)
#else
        :: d_state[a] == RECEIVING && got[a] == ALL -> Activate(a); SendToP(a, COMMIT)
#endif
        :: d_state[a] == ACTIVE -> SendToP(a, COMMIT)
        :: d_state[a] == ABORTING || d_state[a] == FREED || d_state[a] == 0 -> SendToP(a, NACK)
        :: else -> SendToP(a, ACK)              /* tells P what is missing */
        fi
     :: type == CANCEL ->
        if
        :: OPEN(a) -> d_state[a] = ABORTING
        :: d_state[a] == FREED || d_state[a] == 0 || d_state[a] == ACTIVE -> SendToP(a, CANCEL_ACK)
        :: d_state[a] == ABORTING -> skip
        fi
     fi;
     type = 0; a = 0; c = 0; src = 0 }
  od
}

/* D's receives end in any order, at any later time, even those of transfers that were given up. */
active proctype Receives() {
end:
  do
  :: pending[2] -> Deliver(1, 0)
  :: pending[3] -> Deliver(1, 1)
  :: pending[4] -> Deliver(2, 0)
  :: pending[5] -> Deliver(2, 1)
  od
}

/* A transfer is given up because the router cancelled it, its peer gave no sign of life, or its lease ran out: for
 * safety it does not matter which, nor when. Only the calm run waits for a reason. */
active proctype Timers() {
end:
  do
#ifdef CALM
  :: OPEN(1) && cancel_asked[1] -> d_state[1] = ABORTING
#else
  :: atomic { OPEN(1) -> d_state[1] = ABORTING }
  :: atomic { OPEN(2) -> d_state[2] = ABORTING }
#endif
  od
}

/* Frees what was given up, when no receive is pending, and what was answered. */
active proctype Reaper() {
end:
  do
  :: atomic { d_state[1] == ABORTING && (MUTANT == 1 || !PENDING(1)) -> Free(1) }
  :: atomic { d_state[2] == ABORTING && (MUTANT == 1 || !PENDING(2)) -> Free(2) }
  :: atomic { d_state[1] == ACTIVE -> Free(1) }
  :: atomic { d_state[2] == ACTIVE -> Free(2) }
  od
}

proctype P(byte me) {
#ifndef LIVE
  byte answers;   /* sent after its death */
#endif
  mtype type;
  byte a;
  p_state[me] = SENDING;
#ifdef CALM
  to_d!BIND(me, 0); to_d!OFFER(me, 0); to_d!OFFER(me, 1);
  (got[me] == ALL);
  to_d!FINAL(me, 0)
#else
  do
  :: p_state[me] == SENDING || p_state[me] == FINAL_SENT ->
     if
     :: atomic { to_p[me]?type(a) ->
        if
        :: type == COMMIT -> p_state[me] = COMMITTED
        :: type == NACK || type == CANCEL_ACK -> p_state[me] = ABORTED
        :: type == ACK -> skip
        fi; type = 0; a = 0 }
     /* Everything is resent until it is answered, so the order below needs no memory. */
     :: atomic { SendToD(BIND, me, 0) }
     :: atomic { SendToD(OFFER, me, 0) }
     :: atomic { SendToD(OFFER, me, 1) }
     :: atomic { SendToD(FINAL, me, 0); p_state[me] = FINAL_SENT }
     :: cancel_asked[me] -> p_state[me] = ABORTED
     :: me == 1 -> p_state[me] = DEAD          /* dies, or hangs and is given up */
     fi
#ifndef LIVE
  /* A process that hung and comes back: it still believes in its transfer, for a message. */
  :: p_state[me] == DEAD && answers < 1 ->
     atomic { answers++;
       if
       :: SendToD(OFFER, me, 0)
       :: SendToD(OFFER, me, 1)
       :: SendToD(FINAL, me, 0)
       fi
     }
#endif
  :: p_state[me] == COMMITTED || p_state[me] == ABORTED -> break
  :: p_state[me] == DEAD -> break
  od
#endif
}

active proctype Router() {
  reserved[1] = true;
  (d_state[1] != 0);
  run P(1);
  if
  :: d_state[1] == ACTIVE || d_state[1] == FREED -> skip
#ifndef CALM
  :: p_state[1] == DEAD || p_state[1] == ABORTED ->
     /* The first attempt is lost. Its blocks may still be receiving when the second one asks. */
     cancel_asked[1] = true;
     if
     :: activated == 0 -> reserved[2] = true; (d_state[2] != 0); run P(2)
     :: activated != 0 -> skip
     fi
  :: cancel_asked[1] = true                     /* the client left */
#endif
  fi
}

/* Another request on D: takes blocks as soon as they are free, and finds its own bytes in them. */
#ifndef LIVE
active proctype Neighbour() {
  byte rounds;
  do
  :: rounds < 1 ->
     if
     :: atomic { owner[0] == 0 -> owner[0] = NEIGHBOUR; content[0] = NEIGHBOUR };
        atomic { assert(content[0] == NEIGHBOUR); owner[0] = 0; content[0] = 0 }
     :: atomic { owner[1] == 0 -> owner[1] = NEIGHBOUR; content[1] = NEIGHBOUR };
        atomic { assert(content[1] == NEIGHBOUR); owner[1] = 0; content[1] = 0 }
     fi;
     rounds++
  :: break
  od
}
#endif

ltl all_free { <>[] (owner[0] == 0 && owner[1] == 0) }
#ifdef CALM
ltl served { <> (activated == 1) }
#endif
