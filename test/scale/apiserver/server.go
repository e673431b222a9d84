// Package apiserver is a synthetic Kubernetes API server for measurements with very large clusters. It answers list,
// watch, WatchList with bookmarks, get, POST and PATCH, in protobuf and JSON, over TLS. A Base makes most objects only
// when a client asks for them, so that 100,000 pods take a few megabytes. The server has no admission, defaults,
// authentication or etcd.
package apiserver

import (
	"encoding/pem"
	"fmt"
	"net"
	"net/http/httptest"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// Object is an object of Kubernetes. A Server never changes an object in place.
type Object interface {
	runtime.Object
	metav1.Object
}

// Base makes the objects of one kind that exist from the beginning.
type Base interface {
	Len() int
	// At returns the i-th object, without a resource version. beat selects the contents of the object's status. No policy
	// depends on these contents.
	At(i int, beat uint32) Object
	// Find returns the index of the object with this name. The result is false if there is no such object.
	Find(name types.NamespacedName) (int, bool)
}

type Kind struct {
	Group, Version, Kind, Resource string

	Namespaced bool
	New        func() Object
	NewList    func(meta metav1.ListMeta, items []Object) runtime.Object
	// Base makes the objects that exist from the beginning. If Base is nil, there are none.
	Base Base
}

func (k Kind) path() string {
	if k.Group == "" {
		return "/api/" + k.Version
	}
	return "/apis/" + k.Group + "/" + k.Version
}

func (k Kind) apiVersion() string {
	if k.Group == "" {
		return k.Version
	}
	return k.Group + "/" + k.Version
}

// Server is a synthetic API server. Any goroutine may call its methods.
type Server struct {
	http      *httptest.Server
	resources map[string]*resource // by path, such as /api/v1/pods

	limits limits

	mu sync.Mutex // guards rv, and everything in resources
	rv uint64
}

type limits struct {
	log       int           // how many events of a kind the server keeps at least, for watches from an earlier version
	queue     int           // how many events may wait for a slow client; with more, the client's watch ends
	bookmarks time.Duration // how often the server sends bookmarks
}

const firstVersion = 1000

// New returns a server for these kinds. It listens on an address such as 127.0.0.1:0.
func New(address string, kinds ...Kind) (*Server, error) {
	return newServer(address, limits{log: 2_000, queue: 50_000, bookmarks: time.Minute}, kinds)
}

func newServer(address string, l limits, kinds []Kind) (*Server, error) {
	s := &Server{resources: map[string]*resource{}, rv: firstVersion, limits: l}
	for _, k := range kinds {
		s.resources[k.path()+"/"+k.Resource] = newResource(k)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen as the API server: %w", err)
	}
	s.http = httptest.NewUnstartedServer(s.handler(kinds))
	_ = s.http.Listener.Close()
	s.http.Listener = listener
	s.http.EnableHTTP2 = true
	s.http.Config.ReadHeaderTimeout = 10 * time.Second
	s.http.StartTLS()
	return s, nil
}

func (s *Server) Close() {
	s.http.CloseClientConnections()
	s.http.Config.SetKeepAlivesEnabled(false)
	_ = s.http.Config.Close()
	s.http.Close()
}

func (s *Server) URL() string { return s.http.URL }

// Certificate returns the server's certificate as PEM.
func (s *Server) Certificate() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.http.Certificate().Raw})
}

// Kubeconfig returns a kubeconfig with the server's URL and certificate. Its user has no credentials, because the
// server asks for none.
func (s *Server) Kubeconfig() []byte {
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: synthetic
  cluster: {server: %q, certificate-authority-data: %s}
users:
- name: agent
  user: {}
contexts:
- name: synthetic
  context: {cluster: synthetic, user: agent}
current-context: synthetic
`, s.URL(), base64(s.Certificate()))
}

// Put stores a copy of the object. It returns the time at which the change was queued for all watches.
func (s *Server) Put(o Object) time.Time {
	r := s.of(o)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.put(r, o.DeepCopyObject().(Object))
}

func (s *Server) put(r *resource, o Object) time.Time {
	name := nameOf(o)
	was := r.get(name)
	s.rv++
	o.SetResourceVersion(fmt.Sprint(s.rv))
	o.GetObjectKind().SetGroupVersionKind(r.kind.gvk())
	r.hide(name)
	r.objects[name] = o
	s.tell(r, &event{version: s.rv, was: was, now: o})
	return time.Now()
}

// Update changes a stored object. The parameter like is an object with the same kind and name. Update returns the time
// at which the change was queued for all watches, or false if there is no such object.
func (s *Server) Update(like Object, change func(Object)) (time.Time, bool) {
	r := s.of(like)
	s.mu.Lock()
	defer s.mu.Unlock()
	was := r.get(nameOf(like))
	if was == nil {
		return time.Time{}, false
	}
	now := was.DeepCopyObject().(Object)
	change(now)
	return s.put(r, now), true
}

// Beat changes the status of the i-th initial object of a kind. The parameter like is any object of this kind. If the
// initial object was deleted, or changed in another way than by Beat, Beat does nothing.
func (s *Server) Beat(like Object, i int) {
	r := s.of(like)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.base[i].hidden {
		return
	}
	was := r.at(i)
	s.rv++
	r.base[i].beat++
	r.base[i].version = s.rv
	s.tell(r, &event{version: s.rv, was: was, now: r.at(i)})
}

// Delete deletes a stored object. The parameter like is an object with the same kind and name. Delete returns the time
// at which the change was queued for all watches, or false if there is no such object.
func (s *Server) Delete(like Object) (time.Time, bool) {
	r := s.of(like)
	s.mu.Lock()
	defer s.mu.Unlock()
	name := nameOf(like)
	was := r.get(name)
	if was == nil {
		return time.Time{}, false
	}
	s.rv++
	r.hide(name)
	delete(r.objects, name)
	gone := was.DeepCopyObject().(Object)
	gone.SetResourceVersion(fmt.Sprint(s.rv))
	s.tell(r, &event{version: s.rv, was: was, now: gone, deleted: true})
	return time.Now(), true
}

// Get returns a stored object. The parameter like is an object with the same kind and name. If there is no such
// object, Get returns nil.
func (s *Server) Get(like Object) Object {
	r := s.of(like)
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.get(nameOf(like))
}

func (s *Server) of(o Object) *resource {
	for _, r := range s.resources {
		if sameType(r.kind.New(), o) {
			return r
		}
	}
	panic(fmt.Sprintf("the API server has no kind of type %T", o))
}

// Sent says what the server has sent of one kind. Changes is the number of changes of objects, and Watches the number
// of open watches.
type Sent struct {
	Changes int64
	// Events is the number of events, without the initial events of watches. Bytes is their size before TLS.
	Events, Bytes int64
	// Listed is when the server last wrote the end of a list or of initial events. It is zero until the server has
	// written such an end.
	Listed  time.Time
	Watches int
}

// Sent returns what the server has sent of each kind. The keys are resources, such as "pods".
func (s *Server) Sent() map[string]Sent {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]Sent{}
	for _, r := range s.resources {
		sent := r.sent
		sent.Watches = len(r.watches)
		all[r.kind.Resource] = sent
	}
	return all
}
