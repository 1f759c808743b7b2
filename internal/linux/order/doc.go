// Package order is a model of the order in which packets meet the handles of a network namespace, small enough to try every
// interleaving of the steps of handles and packets.
//
// The model has the steps of the engine that others can get between: a rule list that a packet's walk reads once, programs that
// change under the walk, cursors, gates, queues that die with their process. Explore tries every state of a scenario and names
// the promise that breaks, with the steps that broke it. Walk makes a random sequence of whole calls, each with its required
// effects, for a test that makes the same calls on real handles.
//
// A Fault breaks one rule of the engine, so that tests can see that the model notices.
package order
