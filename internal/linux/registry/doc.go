// Package registry raises the events of the layer REFLECT from the table of handles.
package registry
