// Package cgroup finds the cgroup that programs are attached to, and attaches them there in the order of the handles.
//
// Programs on the root of the hierarchy run for every process of the machine. They are attached through links, which the kernel
// removes with the process that holds them.
package cgroup
