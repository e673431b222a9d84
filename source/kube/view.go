package kube

import (
	"maps"
	"reflect"
	"slices"
	"sync"

	"k8s.io/client-go/tools/cache"

	"github.com/weir-net/weir/policy/ruleset"
)

// view has what policy needs of the objects of one kind, and follows a watch. Most updates of a watch, such as
// heartbeats, don't change what policy needs.
type view[O, T any] struct {
	read func(O) (T, []ruleset.Problem)
	// merge, if not nil, returns the version of an object that counts, given the one that counted before and the
	// object as it is now.
	merge func(was, now T) T

	mu      sync.Mutex
	objects map[string]T // by namespace/name
	broken  map[string][]ruleset.Problem
	list    []T // the objects, made when it is first needed; never changed
}

func newView[O, T any](read func(O) (T, []ruleset.Problem)) *view[O, T] {
	return &view[O, T]{read: read, objects: map[string]T{}, broken: map[string][]ruleset.Problem{}}
}

// watch makes the view follow the informer. It calls changed whenever the view has changed. The returned function
// reports whether the view has all objects that existed at the beginning.
func (v *view[O, T]) watch(informer cache.SharedInformer, changed func()) (synced cache.InformerSynced, err error) {
	put := func(o any) {
		if v.put(o) {
			changed()
		}
	}
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: put, UpdateFunc: func(_, o any) { put(o) },
		DeleteFunc: func(o any) {
			if v.remove(o) {
				changed()
			}
		},
	})
	if err != nil {
		return nil, err
	}
	return registration.HasSynced, nil
}

// put stores the object as it is now, and reports whether the view has changed.
func (v *view[O, T]) put(o any) bool {
	key, err := cache.MetaNamespaceKeyFunc(o)
	object, ok := o.(O)
	if err != nil || !ok {
		return false // no informer sends this
	}
	now, problems := v.read(object)
	v.mu.Lock()
	defer v.mu.Unlock()
	if was, ok := v.objects[key]; ok {
		if v.merge != nil {
			now = v.merge(was, now)
		}
		if reflect.DeepEqual(was, now) && slices.Equal(v.broken[key], problems) {
			return false
		}
	}
	v.objects[key], v.list = now, nil
	delete(v.broken, key)
	if len(problems) > 0 {
		v.broken[key] = problems
	}
	return true
}

// remove drops the object, and reports whether the view had it.
func (v *view[O, T]) remove(o any) bool {
	key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(o)
	if err != nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.objects[key]; !ok {
		return false
	}
	delete(v.objects, key)
	delete(v.broken, key)
	v.list = nil
	return true
}

// all returns the objects, in no order, and their problems.
func (v *view[O, T]) all() ([]T, []ruleset.Problem) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.list == nil {
		v.list = slices.AppendSeq(make([]T, 0, len(v.objects)), maps.Values(v.objects))
	}
	return v.list, slices.Concat(slices.Collect(maps.Values(v.broken))...)
}
