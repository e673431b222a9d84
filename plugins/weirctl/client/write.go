package client

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Create creates the object. The error is one line.
//
// Equivalent to: kubectl create --namespace NAMESPACE -f OBJECT
func (a *API) Create(ctx context.Context, r schema.GroupVersionResource, namespace string, o runtime.Object) error {
	err := a.clients[r.GroupVersion()].Post().NamespaceIfScoped(namespace, namespace != "").Resource(r.Resource).Body(o).
		Do(ctx).Error()
	return a.writeError(ctx, "create", r, namespace, err)
}

// Delete deletes the object. A missing object is no error. The error is one line.
//
// Equivalent to: kubectl delete --ignore-not-found --wait=false --namespace NAMESPACE RESOURCE NAME
func (a *API) Delete(ctx context.Context, r schema.GroupVersionResource, namespace, name string) error {
	err := a.clients[r.GroupVersion()].Delete().NamespaceIfScoped(namespace, namespace != "").Resource(r.Resource).
		Name(name).Body(&metav1.DeleteOptions{}).Do(ctx).Error()
	if apierrors.IsNotFound(err) {
		return nil
	}
	return a.writeError(ctx, "delete", r, namespace, err)
}

// Annotate sets an annotation of the object. The error is one line.
//
// Equivalent to: kubectl annotate --overwrite --namespace NAMESPACE RESOURCE NAME KEY=VALUE
func (a *API) Annotate(
	ctx context.Context, r schema.GroupVersionResource, namespace, name string, annotation [2]string,
) error {
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, annotation[0], annotation[1])
	err := a.clients[r.GroupVersion()].Patch(types.MergePatchType).NamespaceIfScoped(namespace, namespace != "").
		Resource(r.Resource).Name(name).Body(patch).Do(ctx).Error()
	return a.writeError(ctx, "annotate", r, namespace, err)
}

// Get reads the object. It returns errors of the API server unchanged.
//
// Equivalent to: kubectl get --namespace NAMESPACE RESOURCE NAME
func (a *API) Get(
	ctx context.Context, r schema.GroupVersionResource, namespace, name string, into runtime.Object,
) error {
	return a.clients[r.GroupVersion()].Get().NamespaceIfScoped(namespace, namespace != "").Resource(r.Resource).
		Name(name).Do(ctx).Into(into)
}

// List reads a list in pieces. It puts each piece into the parameter named into, in place of the piece before, and then
// calls the function page. The error is one line.
//
// Equivalent to: kubectl get --namespace NAMESPACE --selector LABELS --field-selector FIELDS RESOURCE
func (a *API) List(
	ctx context.Context, r schema.GroupVersionResource, namespace string, options metav1.ListOptions, into list,
	page func(),
) error {
	return a.listError(ctx, r.Resource, namespace, a.eachOf(ctx, r, namespace, options, into, page))
}

func (a *API) writeError(ctx context.Context, verb string, r schema.GroupVersionResource, namespace string, err error,
) error {
	scope := ""
	if namespace != "" {
		scope = " -n " + namespace
	}
	switch {
	case err == nil:
		return nil
	case apierrors.IsUnauthorized(err):
		return a.listError(ctx, r.Resource, namespace, err)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("the API server refuses to %s %s: %w (check with: kubectl auth can-i %s %s%s)", verb, r.Resource,
			err, verb, r.Resource, scope)
	}
	return fmt.Errorf("%s %s: %w", verb, r.Resource, err)
}
